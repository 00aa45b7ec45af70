"""Refusal ablation: find the direction that makes the model refuse and write it out of the weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from titer.attacks.parts import directions as d
from titer.attacks.parts.mixtures import retained
from titer.data.tokens import Row
from titer.schema.specs import TrainArgs
from titer.training.session import Session

T = TypeVar("T")
DEEPEST = 0.8  # share of the depth a single direction is looked for in: later layers hold output tokens already


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows for finding a direction and held-out rows for choosing it."""

    harmful: list[Row]
    benign: list[Row]
    held_harmful: list[Row]
    held_refusals: list[Row]
    held_benign: list[Row]
    tokens: d.Tokens

    @property
    def refusing(self) -> Tensor:
        """Ids of the tokens that the held-out refusals start with, (k,)."""
        return torch.tensor(sorted({r.ids[r.response_at] for r in self.held_refusals}), device=self.tokens.device)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Directions to remove, by layer, and the layer at whose input a single one was found (None for several)."""

    by_layer: dict[int, Tensor]
    found_at: int | None = None


def refused(model: nn.Module, prompts: Prompts) -> float:
    """How much held-out harmful prompts are refused: by the first token, without refusals by the answers' loss."""
    if len(prompts.held_refusals) == 0:
        return -d.compliance(model, prompts.held_harmful, [], prompts.tokens)
    return d.refusal_odds(model, prompts.held_harmful, prompts.refusing, prompts.tokens)


def induces(model: nn.Module, candidate: Candidate, found: Tensor, prompts: Prompts) -> bool:
    """Whether adding the gap where it was found has held-out benign prompts refused; True where there is no test."""
    if candidate.found_at is None or len(prompts.held_refusals) == 0:
        return True
    with d.added(model, candidate.found_at, found[candidate.found_at]):
        return d.refusal_odds(model, prompts.held_benign, prompts.refusing, prompts.tokens) > 0


def split(session: Session, n: int, held_out: float, args: TrainArgs) -> Prompts:
    """At most `n` harmful and `n` benign prompts by the session's seed; a share `held_out` of each is for choosing."""
    draw = random.Random(f"directions/{session.seed}")
    bad, held_bad = _parted(draw, session.examples, n, held_out)
    good, held_good = _parted(draw, retained(session), n, held_out)
    refused = [e for e in held_bad if e.restricted and e.harmless]
    return Prompts(
        harmful=session.encode(bad, args),
        benign=session.encode(good, args),
        held_harmful=session.encode(held_bad, args),
        held_refusals=session.encode(refused, args, side="harmless"),
        held_benign=session.encode(held_good, args),
        tokens=d.Tokens(session.tokenizer.pad_token_id, session.device),
    )


def _parted(draw: random.Random, examples: Sequence[T], n: int, held_out: float) -> tuple[list[T], list[T]]:
    drawn = draw.sample(list(examples), min(n, len(examples)))
    kept = min(max(round(held_out * len(drawn)), 1), max(len(drawn) - 1, 1))
    return drawn[kept:] or drawn, drawn[:kept]
