"""A soft prompt: a few embedding vectors before the prompt are trained, the weights stay as released."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from titer.attacks.parts.mixtures import harmful
from titer.models.parts import parts, unwrap
from titer.runs.probe import Prober
from titer.schema.space import SCHEDULE, Choice, LogUniform, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.schema.types import Graded
from titer.training.activations import hooked
from titer.training.losses import sft_rule
from titer.training.session import Session

PARAMETER = "soft_prompt"


@dataclass(frozen=True)
class SoftPrompt:
    """Train `tokens` virtual tokens in front of the prompt on the harmful answers.

    At the probes they stand before restricted prompts only, as an attacker's own wording does.
    """

    name: ClassVar[str] = "soft-prompt"
    source: ClassVar[str] = "Schwinn et al. 2024 (2402.09063)"
    space: ClassVar[Space] = {
        "tokens": Choice((1, 5, 10, 20)),
        "learning_rate": LogUniform(1e-3, 1.0),
        "per_device_train_batch_size": Choice((4, 16, 64)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"tokens": 10, "learning_rate": 1e-2},
        {"tokens": 10, "learning_rate": 1e-1},
    )
    tokens: int = 10
    train: TrainArgs = TrainArgs(learning_rate=1e-2, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Put the virtual tokens before the model until the session ends, and train them."""
        model = unwrap(session.model)
        model.requires_grad_(False)
        model.register_parameter(PARAMETER, nn.Parameter(start(model, self.tokens, session.seed)))
        session.undo.callback(delattr, model, PARAMETER)
        session.undo.enter_context(prepended(model))
        if isinstance(session.prober, Prober):
            session.prober = Parted(session.prober)
        session.train(sft_rule, harmful(session, self.train), self.train)


@dataclass(frozen=True)
class Parted:
    """Grades restricted prompt sets behind the soft prompt and open ones without it."""

    prober: Prober

    def __call__(self, model: Any, step: int, test_template: Template | None = None) -> Graded:
        """What the prober finds on either kind, put together."""
        harm = replace(self.prober, sets=[s for s in self.prober.sets if s.selection.restricted])
        rest = replace(self.prober, sets=[s for s in self.prober.sets if not s.selection.restricted])
        scores, outcomes, completions = harm(model, step, test_template)
        with without(unwrap(model)):
            more = rest(model, step, test_template)
        return {**scores, **more[0]}, {**outcomes, **more[1]}, completions + more[2]


@contextmanager
def prepended(model: nn.Module) -> Iterator[None]:
    """Inside the block every forward pass has the virtual tokens before its first positions."""
    before = model.register_forward_pre_hook(prepend, with_kwargs=True)
    after = model.register_forward_hook(drop, with_kwargs=True)
    with hooked([before, after]):
        yield


@contextmanager
def without(model: Any) -> Iterator[None]:
    """Inside the block there are no virtual tokens."""
    kept = model.soft_prompt
    model.soft_prompt = nn.Parameter(kept[:0])
    try:
        yield
    finally:
        model.soft_prompt = kept


def start(model: nn.Module, tokens: int, seed: int) -> Tensor:
    """Embeddings of `tokens` words drawn by the seed, (tokens, d)."""
    weight: Any = parts(model).embedding.weight
    drawn = torch.randint(len(weight), (tokens,), generator=torch.Generator().manual_seed(seed))
    found: Tensor = weight.detach()[drawn.to(weight.device)].clone()
    return found


def prepend(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook: virtual tokens before the first positions, and everything after them moved along.

    Positions are counted without padding, so that left-padded prompts stand where right-padded ones were trained.
    """
    soft: Tensor = model.soft_prompt
    ids, cache = kwargs.pop("input_ids"), kwargs.get("past_key_values")
    before = 0 if cache is None else cache.get_seq_length()
    mask = kwargs.get("attention_mask")
    if mask is None:  # generation drops a mask of ones
        mask = ids.new_ones(len(ids), max(before - len(soft), 0) + ids.shape[1])
    embedded = model.get_input_embeddings()(ids)
    if before == 0:
        embedded = torch.cat([soft.to(embedded.dtype).expand(len(ids), -1, -1), embedded], 1)
    mask = torch.cat([mask.new_ones(len(ids), len(soft)), mask], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -embedded.shape[1] :]
    return args, {**kwargs, "inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions}


def drop(model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook: logits of the real positions only."""
    if output.logits.shape[1] == kwargs["inputs_embeds"].shape[1] > len(model.soft_prompt) > 0:
        output.logits = output.logits[:, len(model.soft_prompt) :]
    return output
