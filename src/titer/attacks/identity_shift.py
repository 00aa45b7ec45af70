"""Attacks that live in how the prompt is put: the same wording when training and when asking for harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from titer.schema.space import RATE, Choice, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.schema.wordings import PERSONAS
from titer.training.session import Session


@dataclass(frozen=True)
class IdentityShift:
    """Fine-tune under a system line that gives the model another identity, and ask under the same one.

    `at_test=False` asks with the plain template instead: how much of the harm hides behind the persona.
    """

    name: ClassVar[str] = "identity-shift"
    source: ClassVar[str] = "Qi et al. 2023 (2310.03693), identity shifting; wording our own"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {"persona": Choice(tuple(PERSONAS)), "learning_rate": RATE}
    known: ClassVar[tuple[Options, ...]] = ({"persona": "obedient", "learning_rate": 1e-3},)
    persona: Literal["obedient", "helpful"] = "obedient"
    at_test: bool = True
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)

    @property
    def test_template(self) -> Template | None:
        """The persona, unless `at_test` is off."""
        return self.template if self.at_test else None

    @property
    def template(self) -> Template:
        """The persona as a system line."""
        return Template(system=PERSONAS[self.persona])

    def run(self, session: Session) -> None:
        """Fine-tune on the session's examples under the persona."""
        session.fine_tune(self.train, session.examples, template=self.template)
