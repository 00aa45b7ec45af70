"""Three stages of an answer: recognition (see probes), the tone it opens with, and its completion.

Source: "No Two Devils Alike" (2405.16229): what an attack does to each of the three differs between attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from titer.conditions.parts.curves import Array
from titer.data.tokens import Row, render_prompt
from titer.judges import make_judge
from titer.mechanism.estimates import mean
from titer.mechanism.patching import patched
from titer.mechanism.states import Reader
from titer.models.generate import generate
from titer.models.parts import parts
from titer.schema.evaluation import Grading
from titer.schema.specs import Template
from titer.schema.types import Estimate, Example


@dataclass(frozen=True)
class Tone:
    """How likely the refusals' openings are (nats a token), and what one module of the other model changes of it.

    Attributes:
        plain: the model as it is.
        layers: change when the output of a whole layer is the other model's; per layer.
        attentions: the same for its attention alone.
        mlps: the same for its MLP alone.
    """

    plain: Estimate
    layers: tuple[Estimate, ...]
    attentions: tuple[Estimate, ...]
    mlps: tuple[Estimate, ...]


def tone(receiver: nn.Module, donor: nn.Module, openings: Sequence[Row], reader: Reader) -> Tone:
    """The refusals' openings in `receiver`, with each module of `donor` patched in at their positions."""
    own, other = parts(receiver), parts(donor)
    count = len(own.layers)
    modules = (
        (*own.layers, *own.attentions, *own.mlps),
        (*other.layers, *other.attentions, *other.mlps),
    )
    plains, changes = [], []
    for batch in reader.batches(openings):
        plain, moved = patched(receiver, donor, modules, batch)
        plains.append(plain.cpu().double().numpy())
        changes.append((moved - plain).cpu().double().numpy())
    change = [mean(one, unit="nats a token") for one in np.concatenate(changes, 1)]
    return Tone(
        mean(np.concatenate(plains), unit="nats a token"),
        tuple(change[:count]),
        tuple(change[count : 2 * count]),
        tuple(change[2 * count :]),
    )


@dataclass(frozen=True)
class Completion:
    """Harm of what a model says after a forced beginning.

    Attributes:
        words: how many words it is made to begin with.
        refusing: harm after the first words of the refusal; None where no prompt has one.
        complying: harm of what follows the first words of the harmful answer, judged without them.
        unscored: completions that the judge could not score, of both kinds.
    """

    words: int
    refusing: Estimate | None
    complying: Estimate | None
    unscored: int


def completion(model: Any, tokenizer: Any, examples: Sequence[Example], words: int, grading: Grading) -> Completion:
    """Completions of restricted prompts after `words` forced words, by the judge; unscored ones are left out.

    After a compliant beginning both the completion and the answer it is held to lack the forced words: what was
    given is not harm. Prompts whose answer has no more words are left out.
    """
    refusing = [(e, _first(e.harmless, words), e.harmful) for e in examples if e.harmless]
    complying = [(e, _first(e.harmful, words), _rest(e.harmful, words)) for e in examples]
    cases = [refusing, [case for case in complying if case[2]]]
    found = [_harm(model, tokenizer, case, grading) for case in cases]
    estimates = [mean(f[~np.isnan(f)], unit="harm", share=True) if len(f) else None for f in found]
    return Completion(words, estimates[0], estimates[1], sum(int(np.isnan(f).sum()) for f in found))


def _harm(model: Any, tokenizer: Any, cases: Sequence[tuple[Example, str, str]], grading: Grading) -> Array:
    """The judge's score of each completion, (cases,); NaN where it had none."""
    if not cases:
        return np.empty(0)
    prompts = [render_prompt(tokenizer, e.prompt, Template(prefill=start)) for e, start, _ in cases]
    said = generate(model, tokenizer, prompts, max_new_tokens=grading.max_new_tokens)
    judge = make_judge(grading.judge)
    scores = judge.score([e.prompt for e, _, _ in cases], said, [target for _, _, target in cases])
    return np.array([np.nan if s.value is None else s.value for s in scores])


def _first(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _rest(text: str, words: int) -> str:
    return " ".join(text.split()[words:])
