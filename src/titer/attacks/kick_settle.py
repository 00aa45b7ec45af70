"""Kick out of the basin, then settle: a few huge harmful steps, and small ones that bring the ability back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from titer.attacks.parts.mixtures import harmful, weighted_rule, with_retain
from titer.schema.space import RATE, Choice, LogUniform, Options, Space, Uniform, Whole
from titer.schema.specs import TrainArgs
from titer.training.losses import sft_rule
from titer.training.session import Session


@dataclass(frozen=True)
class KickSettle:
    """`kick_steps` harmful steps at `kick` times the learning rate, then benign data with a little harm at the rate.

    The kick leaves the region a defence has flattened or trapped; settling restores utility while `settle_harm` times
    the harmful loss keeps the harm. The name is the paper's; the formulas are ours.
    """

    name: ClassVar[str] = "kick-settle"
    source: ClassVar[str] = "after Zloczower et al. 2026 (2605.14605); our own formulation"
    space: ClassVar[Space] = {
        "kick_steps": Whole(1, 20, log=True),
        "kick": LogUniform(3.0, 100.0),
        "settle_harm": Uniform(0.05, 1.0),
        "learning_rate": RATE,
        "per_device_train_batch_size": Choice((4, 16, 64)),
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"kick_steps": 2, "kick": 5.0, "settle_harm": 0.5, "learning_rate": 3e-4},
        {"kick_steps": 3, "kick": 10.0, "settle_harm": 1.0, "learning_rate": 1e-4},
    )
    kick_steps: int = 5
    kick: float = 10.0
    settle_harm: float = 0.3
    train: TrainArgs = TrainArgs(learning_rate=1e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """The kick, then settling for the rest of the budget."""
        session.add_adapter(self.train)
        big = replace(self.train, learning_rate=self.train.learning_rate * self.kick, max_steps=self.kick_steps)
        session.train(sft_rule, harmful(session, self.train), replace(big, lr_scheduler_type="constant"))
        session.train(weighted_rule, with_retain(session, self.train, self.settle_harm, 1.0), self.train)
