"""Curves with bands, ready to draw: mean over prompts and seeds with a simultaneous 95% band."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from titer.conditions.parts.bootstrap import DRAWS, band
from titer.conditions.parts.curves import by_config, common_steps, matrix, records_of, seeds_of
from titer.schema.types import Curve


def curve_band(
    curves: Sequence[Curve], probe: str = "harm", *, seed: int = 0, draws: int = DRAWS
) -> list[dict[str, float]]:
    """Rows {step, value, low, high} of a probe set along seeds; steps with unscored prompts drop out."""
    layers = [(step, m) for step in common_steps(curves) if (m := matrix(curves, probe, step)) is not None]
    shapes = {m.shape for _, m in layers}
    if len(shapes) != 1:
        return []
    intervals = band(np.stack([m for _, m in layers], axis=2), seed=seed, draws=draws)
    return [
        {"step": step, "value": i.value, "low": i.low, "high": i.high}
        for (step, _), i in zip(layers, intervals, strict=True)
    ]


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
