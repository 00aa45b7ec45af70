"""Supervised fine-tuning on harmful data, over all weights or through a LoRA adapter: the plain attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.attacks.session import Session
from titer.attacks.space import SCHEDULE, TRAIN, Choice, LogUniform, Options, Space
from titer.specs import Template, TrainArgs


@dataclass(frozen=True)
class Sft:
    """Minimise the cross-entropy of the responses given, over all weights (Rosati et al. 2402.16382, eq. 1)."""

    name: ClassVar[str] = "sft"
    source: ClassVar[str] = "Rosati et al. 2024 (2402.16382), eq. 1"
    space: ClassVar[Space] = TRAIN
    known: ClassVar[tuple[Options, ...]] = (
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-4},
        {"learning_rate": 3e-3},
        {"learning_rate": 1e-4},
        {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 30},
        {"learning_rate": 1e-2, "optim": "adafactor"},
        {"learning_rate": 1e-2, "optim": "adafactor", "per_device_train_batch_size": 64},
        {"learning_rate": 3e-4, "per_device_train_batch_size": 64},
    )
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    train_template: Template = Template()
    test_template: Template | None = None

    def run(self, session: Session) -> None:
        """Fine-tune on the session's examples, each answered as given."""
        session.fine_tune(self.train, session.examples, template=self.train_template)


@dataclass(frozen=True)
class Lora:
    """The same through a fresh low-rank adapter on the released weights (Hu et al. 2106.09685)."""

    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "Hu et al. 2021 (2106.09685)"
    space: ClassVar[Space] = {**TRAIN, "learning_rate": LogUniform(3e-5, 3e-2), "lora_r": Choice((4, 16, 64))}
    known: ClassVar[tuple[Options, ...]] = (
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-3},
        {"learning_rate": 1e-2},
    )
    train: TrainArgs = TrainArgs(learning_rate=1e-3, max_steps=0, lora_r=16, lora_alpha=32)
    train_template: Template = Template()
    test_template: Template | None = None

    def run(self, session: Session) -> None:
        """Fine-tune the adapter on the session's examples."""
        session.fine_tune(self.train, session.examples, template=self.train_template)


@dataclass(frozen=True)
class Sgd:
    """Full fine-tuning by SGD with Nesterov momentum, whose learning rates are another scale than Adam's."""

    name: ClassVar[str] = "sgd"
    source: ClassVar[str] = "Tamirisa et al. 2024 (2408.00761), optimisers of the test adversaries"
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
