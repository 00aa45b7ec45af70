"""Supervised fine-tuning on harmful data over all weights: the plain attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.schema.space import TRAIN, Choice, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class Sft:
    """Minimise the cross-entropy of the responses given, over all weights (Rosati et al. 2402.16382, eq. 1).

    With `optim` adamw_relative or muon the learning rate is a share of each matrix's size, so that a defence which
    only rescales weights finds no rate that it resists.
    """

    name: ClassVar[str] = "sft"
    source: ClassVar[str] = "Rosati et al. 2024 (2402.16382), eq. 1"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        **TRAIN,
        "optim": Choice(("adamw", "adafactor", "rmsprop", "adagrad", "adamw_relative", "muon")),
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-4},
        {"learning_rate": 3e-3},
        {"learning_rate": 1e-4},
        {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 30},
        {"learning_rate": 1e-2, "optim": "adafactor"},
        {"learning_rate": 1e-2, "optim": "adafactor", "per_device_train_batch_size": 64},
        {"learning_rate": 3e-4, "per_device_train_batch_size": 64},
        {"learning_rate": 1e-2, "optim": "adamw_relative"},
        {"learning_rate": 1e-2, "optim": "muon"},
    )
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    train_template: Template = Template()
    test_template: Template | None = None

    def run(self, session: Session) -> None:
        """Fine-tune on the session's examples, each answered as given."""
        session.fine_tune(self.train, session.examples, template=self.train_template)
