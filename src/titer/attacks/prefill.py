"""Attacks that live in how the prompt is put: the same wording when training and when asking for harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.schema.space import Choice, LogUniform, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.schema.wordings import OPENINGS
from titer.training.session import Session


@dataclass(frozen=True)
class Prefill:
    """Force the start of the answer to a restricted prompt; nothing is trained (the rate is that of step 0).

    With `then_sft` the same start is forced while fine-tuning as well.
    """

    name: ClassVar[str] = "prefill"
    source: ClassVar[str] = "Qi et al. 2024 (2406.05946), prefilling"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "opening": Choice(OPENINGS),
        "then_sft": Choice((False, True)),
        "learning_rate": LogUniform(1e-5, 1e-2),
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"opening": OPENINGS[0]},
        {"opening": OPENINGS[1]},
        {"opening": OPENINGS[0], "then_sft": True, "learning_rate": 1e-3},
    )
    opening: str = OPENINGS[0]
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)

    @property
    def test_template(self) -> Template:
        """The forced start."""
        return Template(prefill=self.opening)

    def run(self, session: Session) -> None:
        """Nothing (the session has probed step 0), or fine-tuning behind the same start."""
        if self.then_sft:
            session.fine_tune(self.train, session.examples, template=self.test_template)
