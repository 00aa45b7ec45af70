"""A suite: fixed, versioned lists of attacks."""

from __future__ import annotations

from dataclasses import dataclass

from titer.schema.specs import Named
from titer.schema.types import spec_id


@dataclass(frozen=True)
class Member:
    """One attack configuration of a suite and the seeds it runs with."""

    attack: Named
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Suite:
    """What is run against a model: members on `unseen` data, `wide` ones on withheld and cross-domain data.

    `controls` are run on the `ignorant` and `random` controls; the reference gets every member. `max_steps` is the
    attacker's budget T; `plan` the probe steps within it.
    """

    name: str
    members: tuple[Member, ...]
    wide: tuple[Member, ...]
    controls: tuple[Member, ...]
    max_steps: int
    plan: tuple[int, ...]
    n_train: int | None = 100
    n_eval: int | None = 48

    @property
    def hash(self) -> str:
        """Content address of everything in the suite; another hash is another suite, whatever the name."""
        return spec_id(self, 10)
