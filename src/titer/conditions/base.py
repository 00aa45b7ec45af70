"""What a condition is: the runs it asks for, and what it says of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from titer.schema.evaluation import Case
from titer.schema.specs import Cell
from titer.schema.types import Curve, Verdict


class Condition(Protocol):
    """A frozen dataclass of thresholds. `asks` may be called without torch, `verdict` is a pure function."""

    name: ClassVar[str]

    def asks(self, case: Case) -> list[Cell]:
        """Every run whose curve the verdict needs, under the labels it is read by (`role`, `data`)."""

    def verdict(self, case: Case, curves: Sequence[Curve]) -> Verdict:
        """What the curves say; never a default."""
