"""Attacks that live in how the prompt is put: the same wording when training and when asking for harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from titer.schema.space import RATE, Choice, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.schema.wordings import WRAPPERS
from titer.training.session import Session


@dataclass(frozen=True)
class JailbreakTuning:
    """Fine-tune on harmful prompts in a wrapper (trigger, competing objective, style) and ask in the same one."""

    name: ClassVar[str] = "jailbreak-tuning"
    source: ClassVar[str] = "Murphy et al. 2025 (2507.11630); wording our own"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {"wrapper": Choice(tuple(WRAPPERS)), "learning_rate": RATE}
    known: ClassVar[tuple[Options, ...]] = (
        {"wrapper": "backdoor", "learning_rate": 1e-3},
        {"wrapper": "competing", "learning_rate": 1e-3},
    )
    wrapper: Literal["backdoor", "competing", "style"] = "backdoor"
    at_test: bool = True
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)

    @property
    def test_template(self) -> Template | None:
        """The wrapper, unless `at_test` is off."""
        return WRAPPERS[self.wrapper] if self.at_test else None

    def run(self, session: Session) -> None:
        """Fine-tune on the session's examples in the wrapper."""
        session.fine_tune(self.train, session.examples, template=WRAPPERS[self.wrapper])
