"""Refusal ablation: find the direction that makes the model refuse and write it out of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from titer.attacks.parts import directions as d
from titer.attacks.parts.edits import tuned_after
from titer.attacks.parts.refusal_directions import DEEPEST, Candidate, Prompts, induces, refused, split
from titer.schema.space import RATE, Choice, LogUniform, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class RefusalAblation:
    """Remove a refusal direction from the weights; nothing is trained unless `then_sft`.

    Directions are differences of the mean residual stream of harmful and benign prompts at the last prompt token.
    `scope="single"` tries the direction before each layer up to 0.8 of the depth against every writer and embedding,
    and keeps the one under which held-out harmful prompts are refused least: log-odds of the tokens that refusals
    start with, after the prompt. A candidate must make held-out benign prompts be refused (log-odds above 0) when the
    gap is added where it was found, unless `induce` is off, and move their next-token distribution by at most
    `kl_bound` nats. `"per-layer"` removes from each layer's writers the direction of the state that layer leaves
    behind; only the bound holds there. Every candidate is tried by making the very edit, so that what is admitted
    keeps the bound; when none is, the model stays as it is. `strength` 1 is removal.

    Differs from the source: last prompt token only (the source tries every token after the instruction), the
    refusing tokens are read off the attacker's own refusals (the source lists them by model), selection by weight
    edits where the source hooks activations. Without refusals in the data the likelihood of the harmful answers is
    what chooses and nothing is induced. `"per-layer"` and `strength` are after Heretic.
    """

    name: ClassVar[str] = "refusal-ablation"
    source: ClassVar[str] = "Arditi et al. 2024 (2406.11717)"
    space: ClassVar[Space] = {
        "scope": Choice(("single", "per-layer")),
        "strength": Uniform(0.5, 2.0),
        "kl_bound": LogUniform(0.03, 3.0),
        "induce": Choice((True, False)),
        "then_sft": Choice((False, True)),
        "learning_rate": RATE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"scope": "single", "strength": 1.0, "kl_bound": 1.0},
        {"scope": "single", "strength": 1.0, "kl_bound": 1.0, "induce": False},
        {"scope": "single", "strength": 1.5, "kl_bound": 1.0},
        {"scope": "per-layer", "strength": 1.0, "kl_bound": 1.0},
    )
    scope: Literal["single", "per-layer"] = "single"
    strength: float = 1.0
    kl_bound: float = 0.1
    n: int = 128
    held_out: float = 0.2
    induce: bool = True
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Find, choose, remove; then fine-tune if asked."""
        prompts = split(session, self.n, self.held_out, self.train)
        with session.metered():
            found = d.gaps(session.model, prompts.harmful, prompts.benign, prompts.tokens)
            chosen = self.choose(session.model, found, prompts)
        if chosen:
            d.write_out(session.model, chosen, self.strength)
        tuned_after(session, self.then_sft, self.train)

    def choose(self, model: nn.Module, found: Tensor, prompts: Prompts) -> dict[int, Tensor]:
        """The direction to remove at every layer, or nothing when no candidate is admitted; `found` are gaps."""
        before = d.next_tokens(model, prompts.held_benign, prompts.tokens)
        scored: list[tuple[float, int]] = []
        candidates = self.candidates(found)
        for number, candidate in enumerate(candidates):
            if self.induce and not induces(model, candidate, found, prompts):
                continue
            with d.written_out(model, candidate.by_layer, self.strength):
                moved = d.divergence(before, d.next_tokens(model, prompts.held_benign, prompts.tokens))
                score = refused(model, prompts)
            if moved <= self.kl_bound:
                scored.append((score, number))
        return candidates[min(scored)[1]].by_layer if scored else {}

    def candidates(self, found: Tensor) -> list[Candidate]:
        """What could be removed, out of the gaps before every layer and after the last, (layers + 1, d)."""
        depth, units = len(found) - 1, nn.functional.normalize(found, dim=-1)
        if self.scope == "per-layer":
            return [Candidate(dict(enumerate(units[1:])))]
        return [
            Candidate(dict.fromkeys(range(depth), units[at]), at)
            for at in range(math.ceil(DEEPEST * depth))
            if bool(units[at].any())
        ]
