"""Edits of the weights that need no training: rounding, pruning, and going along the line through the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from titer.attacks.parts.edits import matrices, pruned, tuned_after
from titer.schema.errors import TiterError
from titer.schema.space import TUNE_AFTER, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class Prune:
    """Set the `share` of smallest weights of every decoder matrix to zero; then maybe train."""

    name: ClassVar[str] = "prune"
    source: ClassVar[str] = "Wei et al. 2024 (2402.05162), by magnitude"
    space: ClassVar[Space] = {"share": Uniform(0.02, 0.6), **TUNE_AFTER}
    known: ClassVar[tuple[Options, ...]] = ({"share": 0.1}, {"share": 0.3})
    share: float = 0.2
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Prune every matrix; fine-tune if asked."""
        if not 0 <= self.share < 1:
            raise TiterError(f"attack prune: share must be at least 0 and below 1, not {self.share}")
        with torch.no_grad():
            for module in matrices(session.model):
                weight: Any = module.weight
                weight.copy_(pruned(weight, self.share))
        tuned_after(session, self.then_sft, self.train)
