"""The A/A noise floor: the undefended model against itself, through the same pipeline, with other seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from titer.conditions.parts.bootstrap import DRAWS, band
from titer.conditions.parts.curves import Array, by_config, common_steps, matrix, records_of, seeds_of
from titer.schema.types import Curve, Estimate


def noise_floor(
    curves_a: Sequence[Curve],
    curves_b: Sequence[Curve],
    *,
    probes: Sequence[str] = ("harm", "utility"),
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Estimate]:
    """Per probe set the largest difference of means between two groups of equal runs, over configurations and steps.

    A difference between models smaller than this shows nothing. The interval is the simultaneous 95% band of the
    difference at that probe, as distances from zero. Value None: nothing was probed in both groups.
    """
    return {probe: _largest(curves_a, curves_b, probe, seed, draws) for probe in probes}


def _largest(a: Sequence[Curve], b: Sequence[Curve], probe: str, seed: int, draws: int) -> Estimate:
    ours, theirs = by_config(a), by_config(b)
    found = [_one(ours[k], theirs[k], probe, seed, draws) for k in sorted(ours.keys() & theirs.keys())]
    known = [e for e in found if e is not None]
    empty = Estimate(None, None, None, 0, unit=probe, method="nothing was probed in both groups")
    return max(known, key=lambda e: e.value or 0.0, default=empty)


def _one(a: list[Curve], b: list[Curve], probe: str, seed: int, draws: int) -> Estimate | None:
    """Seed i of one group against seed i of the other, as far as both have seeds."""
    pairs = min(len(a), len(b))
    a, b = a[:pairs], b[:pairs]
    layers: list[tuple[int, Array]] = []
    for step in common_steps([*a, *b]):
        x, y = matrix(a, probe, step), matrix(b, probe, step)
        if x is not None and y is not None and x.shape == y.shape:
            layers.append((step, x - y))
    if not layers or len({d.shape for _, d in layers}) != 1:
        return None
    rows = band(np.stack([d for _, d in layers], axis=2), seed=seed, draws=draws, bounds=(-1.0, 1.0))
    k = max(range(len(rows)), key=lambda i: abs(rows[i].value))
    ends = sorted((abs(rows[k].low), abs(rows[k].high)))
    low = 0.0 if rows[k].low <= 0 <= rows[k].high else ends[0]
    how = f"largest |difference|, {a[0].config} at step {layers[k][0]}; simultaneous bootstrap band"
    both = [*a, *b]
    return Estimate(
        abs(rows[k].value), low, ends[1], layers[k][1].shape[1], seeds_of(both), records_of(both), probe, how
    )
