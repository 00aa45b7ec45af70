"""Guards: what a provider who runs the fine-tune can do, by a rule during it or by a repair after it.

A guard acts where the provider keeps the weights. Against an attacker who holds them it does nothing, so guards are
measured by `titer evaluate --threat_model api` alone and never appear in a table of open weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from titer.guards.base import Guard, Repair, Serves, Tuning
from titer.guards.none import NoGuard
from titer.schema.errors import TiterError
from titer.schema.registry import Kind, split_options
from titer.schema.specs import Template

GUARDS = Kind("guard", "titer.guards")


@dataclass(frozen=True)
class Guarded:
    """How a provider tunes: by one guard, then the repairs in order."""

    guard: Guard
    repairs: tuple[Repair, ...] = ()

    @property
    def members(self) -> tuple[Guard | Repair, ...]:
        """The guard and the repairs; a guard that does nothing is left out beside a repair."""
        named = () if self.guard.name == "none" and self.repairs else (self.guard,)
        return (*named, *self.repairs)

    @property
    def needs(self) -> frozenset[str]:
        """What any member needs."""
        return frozenset().union(*(m.needs for m in self.members))

    def served(self, tokenizer: Any) -> Template:
        """How the provider puts prompts to the tuned model."""
        return self.guard.served(tokenizer) if isinstance(self.guard, Serves) else Template()

    def tune(self, job: Tuning) -> None:
        """Fine-tune, then repair."""
        self.guard.tune(job)
        for one in self.repairs:
            one.repair(job)


def configure_guard(name: str, options: Mapping[str, Any]) -> Guarded:
    """The guard behind a name, an import path, or several joined by `+`: one guard at most, then repairs.

    Options of several are written `member.option`.
    """
    names = name.split("+")
    own = {name: options} if len(names) == 1 else split_options(names, dict(options))
    members = [GUARDS.build(n, own[n]) for n in names]
    rules = [m for m in members if not isinstance(m, Repair)]
    if len(rules) > 1:
        raise TiterError(f"guard {name}: {rules[0].name} and {rules[1].name} both act during the tune: take one")
    if rules and members[0] is not rules[0]:
        raise TiterError(f"guard {name}: {rules[0].name} acts during the tune: name it before the repairs")
    return Guarded(rules[0] if rules else NoGuard(), tuple(m for m in members if isinstance(m, Repair)))


__all__ = ["GUARDS", "Guard", "Guarded", "Repair", "Tuning", "configure_guard"]
