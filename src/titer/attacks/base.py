"""What an attack is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from titer.schema.specs import Template
from titer.training.session import Session


class Attack(Protocol):
    """What a session needs of an attack. `test_template`, when given, wraps the harm prompts at every probe.

    Two more may be said: `shards = True`, that it gives on several processes what it gives on one, and
    `models = ("base",)`, which of its options name a model.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    @property
    def test_template(self) -> Template | None:
        """How the attacker words harm prompts at test time; None leaves the probe's own template."""

    def run(self, session: Session) -> None:
        """Change `session.model` by the session's means until done; the session raises `Stopped` when it is over."""
