"""Composition: the sum of several defences' gradients, where that means something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from titer.schema.errors import TiterError
from titer.schema.types import Pair


@dataclass(frozen=True)
class Sum:
    """Adds the gradients of its members in order; a loss term is reported as `member.term`.

    Terms that several members have (CE on refusals, retain) count once for each: set the members' weights with that in
    mind.
    """

    stage: ClassVar[str] = "before release"
    broken_by: ClassVar[str] = "see its members"

    members: tuple[Any, ...]

    def __post_init__(self) -> None:
        names = [m.name for m in self.members]
        for member in self.members:
            if why := getattr(member, "alone", ""):
                raise TiterError(f"defence {'+'.join(names)}: {member.name} cannot be added to others: {why}")
        if len(names) < 2 or len(set(names)) < len(names):
            raise TiterError(f"defence {'+'.join(names)}: name two or more different defences, joined by +")

    @property
    def name(self) -> str:
        """The members' names, joined by +."""
        return "+".join(m.name for m in self.members)

    @property
    def needs(self) -> frozenset[str]:
        """What any member needs."""
        return frozenset().union(*(m.needs for m in self.members))

    @property
    def passes(self) -> str:
        """The members' passes, added."""
        return " + ".join(f"({m.passes})" for m in self.members)

    @property
    def source(self) -> str:
        """The members' sources."""
        return "; ".join(m.source for m in self.members)

    @property
    def inner_batches(self) -> int:
        """Members share the extra batches."""
        return int(max(m.inner_batches for m in self.members))

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms of every member, prefixed by its name; `loss` is their sum."""
        terms = {f"{m.name}.{key}": value for m in self.members for key, value in m.backward(model, pair).items()}
        return {"loss": sum(terms[f"{m.name}.loss"] for m in self.members)} | terms
