"""Repair: undo the collapse a defence answers with, then go on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from titer.attacks.parts.mixtures import benign, harmful, weighted_rule, with_retain
from titer.schema.space import RATE, Choice, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.losses import sft_rule
from titer.training.session import Session


@dataclass(frozen=True)
class Repair:
    """Harm until the model gives way (`harm_steps`), benign data to bring it back (`repair_steps`), then harm again.

    The last part keeps `retain_weight` times the benign loss. Against a defence that collapses under attack the first
    two parts say what undoing the collapse costs.
    """

    name: ClassVar[str] = "repair"
    source: ClassVar[str] = "design: repair cost of self-destructing models (Wang et al. 2025, 2505.12186)"
    space: ClassVar[Space] = {
        "harm_steps": Choice((0, 5, 20, 50)),
        "repair_steps": Choice((5, 20, 50, 100)),
        "retain_weight": Uniform(0.0, 2.0),
        "learning_rate": RATE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"harm_steps": 20, "repair_steps": 20, "retain_weight": 1.0, "learning_rate": 1e-3},
    )
    harm_steps: int = 20
    repair_steps: int = 20
    retain_weight: float = 1.0
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """The three parts, each with a fresh optimiser."""
        session.add_adapter(self.train)
        if self.harm_steps:
            session.train(sft_rule, harmful(session, self.train), replace(self.train, max_steps=self.harm_steps))
        if self.repair_steps:
            session.train(sft_rule, benign(session, self.train), replace(self.train, max_steps=self.repair_steps))
        session.train(weighted_rule, with_retain(session, self.train, 1.0, self.retain_weight), self.train)
