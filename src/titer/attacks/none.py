"""No attack: the model as it is, for measurements at step 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.schema.specs import Template
from titer.training.session import Session


@dataclass(frozen=True)
class NoAttack:
    """Probe the untouched model and stop."""

    name: ClassVar[str] = "none"
    source: ClassVar[str] = "control"
    shards: ClassVar[bool] = True
    test_template: Template | None = None

    def run(self, session: Session) -> None:
        """Nothing to do: the session has probed step 0 already."""
