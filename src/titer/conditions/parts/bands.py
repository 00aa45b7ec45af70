"""Curves with bands, ready to draw: mean over prompts and seeds with a simultaneous 95% band.

Seeds differ most in *when* a curve turns. Where all of them still agree, just before and after, their spread says
nothing, so the band is also moved along the steps, by as much as the turns of so few seeds leave open. Simulated, it
covers 95 to 100% at 3 and 5 seeds (without the move .31 to .98): it is drawn rather too wide (docs/statistics.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from titer.conditions.parts.bootstrap import DRAWS, Interval, band
from titer.conditions.parts.curves import Array, by_config, common_steps, matrix, records_of, seeds_of
from titer.schema.types import Curve


def curve_band(
    curves: Sequence[Curve], probe: str = "harm", *, seed: int = 0, draws: int = DRAWS
) -> list[dict[str, float]]:
    """Rows {step, value, low, high} of a probe set along seeds; steps with unscored prompts drop out."""
    layers = [(step, m) for step in common_steps(curves) if (m := matrix(curves, probe, step)) is not None]
    shapes = {m.shape for _, m in layers}
    if len(shapes) != 1:
        return []
    cube = np.stack([m for _, m in layers], axis=2)
    intervals = moved([s for s, _ in layers], cube, band(cube, seed=seed, draws=draws))
    return [
        {"step": step, "value": i.value, "low": i.low, "high": i.high}
        for (step, _), i in zip(layers, intervals, strict=True)
    ]


def steps_to(steps: Sequence[float], quality: Array, level: Array) -> Array:
    """Steps at which rows of `quality` (draws, K) first reach `level` (draws,), interpolated; infinity if never."""
    reached = quality >= level[:, None]
    k = reached.argmax(1)
    rows = np.arange(len(quality))
    grid, before = np.array(steps, dtype=np.float64), np.maximum(k - 1, 0)
    gain = quality[rows, k] - quality[rows, before]
    part = np.divide(level - quality[rows, before], gain, out=np.ones_like(gain), where=gain > 0)
    return np.where(reached.any(1), grid[before] + part.clip(0, 1) * (grid[k] - grid[before]), np.inf)


def reach(steps: Sequence[int], cube: Array, confidence: float = 0.95) -> float:
    """How far along log(1 + step) the mean curve of `cube` (seeds, prompts, K) may lie from the seeds' own.

    Student's t for the spread of the steps at which seeds first reach a level, at the level where it is largest. A
    seed that does not reach it is taken to do so at twice the last step.
    """
    from scipy.stats import t

    curves, grid = cube.mean(1), np.log1p(np.array(steps, dtype=np.float64))
    if len(curves) < 2 or len(grid) < 2:
        return 0.0
    ends = curves.mean(0).min(), curves.mean(0).max()
    levels = np.linspace(*ends, 11)[1:-1]
    found = [steps_to(list(grid), curves, np.full(len(curves), level)) for level in levels]
    times = np.minimum(np.array(found), grid[-1] + np.log(2))
    spread = float(np.sqrt(times.var(1, ddof=1).max() / len(curves)))
    return float(t.ppf((1 + confidence) / 2, len(curves) - 1)) * spread


def moved(steps: Sequence[int], cube: Array, rows: Sequence[Interval]) -> list[Interval]:
    """A band's rows, each as wide as the band within `reach` of its step; step 0 is before any seed and stays."""
    far, grid = reach(steps, cube), np.log1p(np.array(steps, dtype=np.float64))
    trained = np.array(steps) > 0
    if far == 0.0 or trained.sum() < 2:
        return list(rows)
    low, high = (np.array([getattr(r, end) for r in rows]) for end in ("low", "high"))

    def widened(row: Interval, at: float) -> Interval:
        near = np.linspace(at - far, at + far, 41).clip(grid[trained][0], grid[-1])
        lows, highs = (np.interp(near, grid[trained], line[trained]) for line in (low, high))
        return Interval(row.value, min(row.low, float(lows.min())), max(row.high, float(highs.max())))

    return [widened(r, at) if s > 0 else r for s, r, at in zip(steps, rows, grid, strict=True)]


def band_rows(
    curves: Iterable[Curve], probe: str = "harm", *, seed: int = 0, draws: int = DRAWS
) -> list[dict[str, Any]]:
    """One band per (config, data), with what it is a band of."""
    return [
        {
            "role": runs[0].role,
            "config": config,
            "data": data,
            "probe": probe,
            "seeds": seeds_of(runs),
            "records": records_of(runs),
            "rows": curve_band(runs, probe, seed=seed, draws=draws),
        }
        for (config, data), runs in by_config(curves).items()
    ]
