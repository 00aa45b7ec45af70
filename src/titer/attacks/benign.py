"""Benign fine-tuning: alone, where it is no attack by intent, and as the first half of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.attacks.parts.mixtures import retained
from titer.schema.space import TRAIN, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class Benign:
    """Fine-tune on benign data alone."""

    name: ClassVar[str] = "benign"
    source: ClassVar[str] = "Qi et al. 2023 (2310.03693)"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = TRAIN
    known: ClassVar[tuple[Options, ...]] = ({"learning_rate": 1e-3}, {"learning_rate": 1e-4})
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Fine-tune on the session's benign examples."""
        session.fine_tune(self.train, retained(session))
