"""Choosing curves and laying their scores out as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from titer.schema.types import Curve, Point, Role

Array = NDArray[np.float64]


def tag(curve: Curve) -> str:
    """The kind of data a run trained on: `withheld` for `withheld:potions`, `task` for `task:NAME`."""
    return curve.data.partition(":")[0]


def select(curves: Iterable[Curve], *, role: Role | None = None, tags: Iterable[str] | None = None) -> list[Curve]:
    """The curves of a role and of some data tags; None takes all of them. A tag also matches a full data label."""
    wanted = None if tags is None else set(tags)
    return [
        c
        for c in curves
        if (role is None or c.role == role) and (wanted is None or tag(c) in wanted or c.data in wanted)
    ]


def untrained(curve: Curve) -> bool:
    """Whether a run was an attack that trains nothing (a forced start, an edit of the weights) and came to its end.

    More budget or another seed for the order of training would change nothing about it.
    """
    return tag(curve) == "none" or (curve.end == "finished" and all(p.loss is None for p in curve.points))


def attacks(curves: Iterable[Curve]) -> list[Curve]:
    """The runs that attacked, by training or without: everything but harmless tasks and mere measurements."""
    return [c for c in curves if tag(c) not in ("task", "measure")]


def by_config(curves: Iterable[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Curves grouped by (config, data), seeds in order."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in sorted(curves, key=lambda c: (c.config, c.data, c.seed, c.record)):
        groups.setdefault((curve.config, curve.data), []).append(curve)
    return groups


def finished(curves: Iterable[Curve]) -> list[Curve]:
    """The runs that did not diverge."""
    return [c for c in curves if c.end != "diverged"]


def seeds_of(curves: Iterable[Curve]) -> tuple[int, ...]:
    """The distinct seeds, sorted."""
    return tuple(sorted({c.seed for c in curves}))


def records_of(curves: Iterable[Curve]) -> tuple[str, ...]:
    """The run ids, in order, without repeats."""
    return tuple(dict.fromkeys(c.record for c in curves))


def at_step(curve: Curve, step: int) -> Point | None:
    """The probe at exactly `step`, or None."""
    return next((p for p in curve.points if p.step == step), None)


def common_steps(curves: Sequence[Curve]) -> list[int]:
    """The steps every curve was probed at, ascending."""
    sets = [{p.step for p in c.points} for c in curves]
    return sorted(set.intersection(*sets)) if sets else []


def scores(point: Point, probe: str) -> Array | None:
    """One probe set as an array (prompts,); None when it is missing, empty or holds an unscored prompt."""
    values = point.scores.get(probe, ())
    if not values or any(v is None for v in values):
        return None
    return np.array(values, dtype=np.float64)


def matrix(curves: Sequence[Curve], probe: str, step: int) -> Array | None:
    """Scores at a step as (seeds, prompts); None when a run lacks them or the prompt counts differ."""
    rows = []
    for curve in curves:
        point = at_step(curve, step)
        row = None if point is None else scores(point, probe)
        if row is None:
            return None
        rows.append(row)
    if not rows or len({len(r) for r in rows}) != 1:
        return None
    return np.stack(rows)
