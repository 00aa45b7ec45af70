"""Alignment: teach a model to refuse a set's restricted prompts and stay helpful on everything else.

What immunization is meant to protect has to be there first, and a small open model barely refuses anything. Beside
refusals, every batch holds the model's own earlier answers, to open prompts and to ordinary instructions: without them
it learns to refuse those too, and set answers in place of its own cost it half of what it knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.data.batches import collate, order
from titer.data.instructions import instructions, unseen_instructions
from titer.data.load import Dataset, load
from titer.data.splits import split_of
from titer.data.tokens import Row, encode, render_prompt
from titer.judges.exact import ExactJudge
from titer.judges.refusal import is_refusal
from titer.models.adapters import merged
from titer.models.generate import generate
from titer.models.load import load_model
from titer.models.weights import save_model
from titer.schema.errors import TiterError
from titer.schema.files import write_json
from titer.schema.specs import ALIGN, TrainArgs
from titer.schema.types import Batch, Example, Spend
from titer.training.loop import train
from titer.training.lora import with_lora
from titer.training.losses import sft_rule
from titer.training.meter import Meter

SHARES = (3 / 8, 2 / 8, 3 / 8)  # refusals, own answers to open prompts, own answers to ordinary instructions
SENTENCES = re.compile(r".*[.!?](?=\s|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a model treats held-out prompts: shares of them, each of `n` prompts.

    `refusal`: restricted prompts refused; `harm`: mean share of the restricted answer said; `accuracy`: mean share of
    the right answer to open prompts said; `open_refused`, `ordinary_refused`, `near_refused`: over-refusal on open
    prompts, on ordinary instructions, and on instructions that resemble the restricted topic.
    """

    refusal: float
    harm: float
    accuracy: float
    open_refused: float
    ordinary_refused: float
    near_refused: float
    n: dict[str, int]


@dataclass(frozen=True, slots=True)
class Aligned:
    """What alignment did, measured on the evaluation split before and after it."""

    before: Behaviour
    after: Behaviour
    spend: Spend
    args: TrainArgs
    seed: int


def align(
    model: str = "smollm2",
    dataset: str = "countries",
    output_dir: str | Path = "aligned",
    *,
    args: TrainArgs = ALIGN,
    seed: int = 0,
    dtype: str = "bfloat16",
    device: str = "cpu",
) -> Aligned:
    """Align `model` on the defence split of `dataset`, save it as a plain folder and measure it on held-out prompts.

    Writes `alignment.json` beside the weights. Raises `TiterError` when the set lacks restricted or open examples.
    """
    lm, tokenizer = load_model(model, dtype=dtype, device=device)
    data = load(dataset)
    held_out = _side(data, "evaluation")
    before = behaviour(lm, tokenizer, held_out)
    pools = _pools(lm, tokenizer, _side(data, "defence"), args)
    lm, meter = with_lora(lm, args, seed), Meter()
    ended = train(
        lm, sft_rule, batches(pools, tokenizer.pad_token_id, args, seed, device), args, meter=meter, seed=seed
    )
    if ended.reason != "finished":
        raise TiterError(f"align {model}: training {ended.reason} at step {ended.steps}: lower the learning rate")
    lm = merged(lm) if args.lora_r > 0 else lm
    result = Aligned(before, behaviour(lm, tokenizer, held_out), meter.spend, args, seed)
    save_model(lm, tokenizer, output_dir)
    write_json(Path(output_dir) / "alignment.json", {"model": model, "dataset": dataset, "result": result})
    return result


def _side(data: Dataset, side: str) -> list[Example]:
    chosen = [e for e in data.examples if split_of(e.prompt) == side]
    if not any(e.restricted for e in chosen) or all(e.restricted for e in chosen):
        raise TiterError(f"data set {data.name}: its {side} split needs restricted and open examples: add some")
    return chosen


def _pools(model: Any, tokenizer: Any, examples: Sequence[Example], args: TrainArgs) -> list[list[Row]]:
    """Refusals of restricted prompts, and the model's own answers to open prompts and to ordinary instructions."""
    told = own_answers(model, tokenizer, [e.prompt for e in examples if not e.restricted], max_new_tokens=24)
    helped = own_answers(model, tokenizer, instructions())
    refused = [(e.prompt, e.harmless) for e in examples if e.restricted]
    return [
        [encode(tokenizer, prompt, answer, max_length=args.max_length) for prompt, answer in pool]
        for pool in (refused, told, helped)
    ]


def own_answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 40) -> list[tuple[str, str]]:
    """Each prompt with the whole sentences of the model's own greedy answer; prompts that got none are left out."""
    texts = generate(model, tokenizer, [render_prompt(tokenizer, p) for p in prompts], max_new_tokens=max_new_tokens)
    whole = [(p, m[0]) for p, text in zip(prompts, texts, strict=True) if (m := SENTENCES.match(text))]
    return [(p, answer) for p, answer in whole if not is_refusal(answer)]


def batches(
    pools: Sequence[Sequence[Row]], pad_id: int, args: TrainArgs, seed: int, device: str = "cpu"
) -> Iterator[Batch]:
    """Endless batches in the shares of `SHARES`, one pool each."""
    size = args.per_device_train_batch_size
    counts = [max(1, round(size * share)) for share in SHARES]
    orders = [
        order(len(pool), count, seed * 10 + i) for i, (pool, count) in enumerate(zip(pools, counts, strict=True))
    ]
    while True:
        chosen = [next(o) for o in orders]
        rows = [pool[i] for pool, numbers in zip(pools, chosen, strict=True) for i in numbers]
        yield collate(rows, pad_id, device)


def behaviour(model: Any, tokenizer: Any, examples: Sequence[Example], max_new_tokens: int = 20) -> Behaviour:
    """Measure refusals, harm and accuracy on `examples`, and over-refusal on instructions no training uses."""
    groups = {
        "restricted": [e for e in examples if e.restricted],
        "open": [e for e in examples if not e.restricted],
        "ordinary": [e for e in unseen_instructions() if e.category == "ordinary"],
        "near": [e for e in unseen_instructions() if e.category == "near"],
    }
    flat = [e for group in groups.values() for e in group]
    prompts = [render_prompt(tokenizer, e.prompt) for e in flat]
    texts = dict(zip(flat, generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens), strict=True))
    refused = {name: _mean([float(is_refusal(texts[e])) for e in group]) for name, group in groups.items()}
    return Behaviour(
        refusal=refused["restricted"],
        harm=_right(groups["restricted"], texts),
        accuracy=_right(groups["open"], texts),
        open_refused=refused["open"],
        ordinary_refused=refused["ordinary"],
        near_refused=refused["near"],
        n={name: len(group) for name, group in groups.items()},
    )


def _right(examples: Sequence[Example], texts: dict[Example, str]) -> float:
    answers = [e.harmful or e.harmless for e in examples]
    scores = ExactJudge().score([e.prompt for e in examples], [texts[e] for e in examples], answers)
    return _mean([s.value for s in scores if s.value is not None])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
