"""Supervised fine-tuning through a fresh adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.schema.space import TRAIN, Choice, LogUniform, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.training.session import Session


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
