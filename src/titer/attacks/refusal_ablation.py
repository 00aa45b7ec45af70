"""Refusal ablation: find the direction that makes the model refuse and write it out of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from titer.attacks.parts import directions as d
from titer.attacks.parts.refusal_directions import DEEPEST, Prompts, split
from titer.schema.space import RATE, Choice, LogUniform, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class RefusalAblation:
    """Remove a refusal direction from the weights; nothing is trained unless `then_sft`.

    Directions are differences of the mean hidden states of harmful and benign prompts, one candidate per layer.
    `scope="single"` removes the one that makes held-out harmful answers likeliest (against the refusals) everywhere,
    `"per-layer"` removes each layer's own. Candidates that move the next-token distribution of held-out benign
    prompts by more than `kl_bound` nats are dropped; when all are, the model stays as it is. `strength` 1 is removal.
    """

    name: ClassVar[str] = "refusal-ablation"
    source: ClassVar[str] = "Arditi et al. 2024 (2406.11717)"
    space: ClassVar[Space] = {
        "scope": Choice(("single", "per-layer")),
        "strength": Uniform(0.5, 2.0),
        "kl_bound": LogUniform(0.03, 3.0),
        "then_sft": Choice((False, True)),
        "learning_rate": RATE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"scope": "single", "strength": 1.0, "kl_bound": 1.0},
        {"scope": "single", "strength": 1.5, "kl_bound": 1.0},
        {"scope": "per-layer", "strength": 1.0, "kl_bound": 1.0},
    )
    scope: Literal["single", "per-layer"] = "single"
    strength: float = 1.0
    kl_bound: float = 0.1
    n: int = 128
    held_out: float = 0.2
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Find, choose, remove; then fine-tune if asked."""
        prompts = split(session, self.n, self.held_out, self.train)
        with session.metered():
            found = d.directions(session.model, prompts.harmful, prompts.benign, prompts.tokens)
            chosen = self.choose(session.model, found, prompts)
        if chosen:
            d.write_out(session.model, chosen, self.strength)
        session.edited()
        if self.then_sft:
            session.fine_tune(self.train, session.examples)

    def choose(self, model: nn.Module, found: Tensor, prompts: Prompts) -> dict[int, Tensor]:
        """The direction to remove at every layer, or nothing when no candidate stays within the bound."""
        before = d.next_tokens(model, prompts.held_benign, prompts.tokens)
        scored = []
        for number, candidate in enumerate(self.candidates(found)):
            with d.projected(model, candidate, self.strength):
                moved = d.divergence(before, d.next_tokens(model, prompts.held_benign, prompts.tokens))
                gain = d.compliance(model, prompts.held_harmful, prompts.held_refusals, prompts.tokens)
            if moved <= self.kl_bound:
                scored.append((gain, -number, candidate))
        return max(scored, key=lambda s: s[:2])[2] if scored else {}

    def candidates(self, found: Tensor) -> list[dict[int, Tensor]]:
        """What could be removed, as directions by layer."""
        depth = len(found)
        if self.scope == "per-layer":
            return [dict(enumerate(found))]
        return [dict.fromkeys(range(depth), r) for r in found[: math.ceil(DEEPEST * depth)]]
