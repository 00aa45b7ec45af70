"""Benign fine-tuning: alone, where it is no attack by intent, and as the first half of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from titer.attacks.parts.mixtures import benign, harmful
from titer.schema.space import Choice, LogUniform, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.losses import sft_rule
from titer.training.session import Session


@dataclass(frozen=True)
class BenignThenHarmful:
    """Fine-tune on benign data for `benign_steps`, then on harmful data with a fresh optimiser.

    With `train.lora_r` set, `adapter` says whether the second part continues the first one's adapter or merges it
    into the weights and starts a fresh one.
    """

    name: ClassVar[str] = "benign-then-harmful"
    source: ClassVar[str] = "Qi et al. 2023 (2310.03693), benign part first"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "benign_steps": Choice((2, 5, 20, 100)),
        "learning_rate": LogUniform(1e-5, 1e-2),
        "lora_r": Choice((0, 16)),
        "adapter": Choice(("continued", "fresh")),
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"benign_steps": 5, "learning_rate": 3e-4},
        {"benign_steps": 5, "learning_rate": 3e-3, "lora_r": 16, "adapter": "continued"},
    )
    benign_steps: int = 20
    adapter: Literal["continued", "fresh"] = "continued"
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """The two parts, one after the other."""
        session.add_adapter(self.train)
        session.train(sft_rule, benign(session, self.train), replace(self.train, max_steps=self.benign_steps))
        if self.adapter == "fresh" and self.train.lora_r > 0:
            session.model = session.model.merge_and_unload()
            session.add_adapter(self.train)
        session.train(sft_rule, harmful(session, self.train), self.train)
