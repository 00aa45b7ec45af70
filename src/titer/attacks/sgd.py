"""Supervised fine-tuning by SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.schema.space import SCHEDULE, Choice, LogUniform, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class Sgd:
    """Full fine-tuning by SGD with Nesterov momentum, whose learning rates are another scale than Adam's."""

    name: ClassVar[str] = "sgd"
    source: ClassVar[str] = "Tamirisa et al. 2024 (2408.00761), optimisers of the test adversaries"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "learning_rate": LogUniform(1e-3, 1.0),
        "optim": Choice(("nesterov", "sgd")),
        "per_device_train_batch_size": Choice((4, 16, 64)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = ({"learning_rate": 0.1}, {"learning_rate": 0.03})
    train: TrainArgs = TrainArgs(learning_rate=0.1, max_steps=0, optim="nesterov")
    test_template: Template | None = None

    def run(self, session: Session) -> None:
        """Fine-tune on the session's examples, each answered as given."""
        session.fine_tune(self.train, session.examples)
