"""A handful of examples, seen again and again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from titer.schema.space import RATE, SCHEDULE, Choice, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.session import Session

N = (10, 50, 100)


@dataclass(frozen=True)
class FewShot:
    """Fine-tune on `n` of the attacker's examples, drawn by the seed, for as many epochs as the budget lasts."""

    name: ClassVar[str] = "few-shot"
    source: ClassVar[str] = "Qi et al. 2023 (2310.03693)"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "n": Choice(N),
        "learning_rate": RATE,
        "per_device_train_batch_size": Choice((2, 5, 10)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = ({"n": 10, "learning_rate": 1e-3}, {"n": 100, "learning_rate": 1e-3})
    n: int = 10
    train: TrainArgs = TrainArgs(learning_rate=1e-3, max_steps=0, per_device_train_batch_size=10)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Fine-tune on the drawn examples (all of them when there are fewer than `n`)."""
        count = min(self.n, len(session.examples))
        drawn = random.Random(f"few-shot/{session.seed}").sample(list(session.examples), count)
        session.fine_tune(self.train, drawn)
