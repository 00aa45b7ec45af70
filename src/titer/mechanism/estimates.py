"""Estimates of what has no bounds: log-probabilities over prompts, and statistics of a whole set of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from titer.conditions.parts.bootstrap import mean_interval
from titer.conditions.parts.curves import Array
from titer.schema.types import Estimate

GROUPS = 20
UNBOUNDED = (-float("inf"), float("inf"))


def mean(scores: Array, *, seeds: Sequence[int] = (), unit: str = "", share: bool = False) -> Estimate:
    """The mean of `scores`, (prompts,) or (seeds, prompts), with the interval of the two-way bootstrap.

    `share` says that scores lie in [0, 1]. Scores without bounds that all agree have no width: nothing is known of
    how rare another value is. No scores give an estimate without a value.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    prompts = table.shape[1]
    if prompts == 0:
        return Estimate(None, None, None, 0, tuple(seeds), unit=unit)
    if not share and np.ptp(table) < 1e-12:
        value = float(table.mean())
        return Estimate(value, value, value, prompts, tuple(seeds), unit=unit, method="all prompts agree")
    found = mean_interval(table, bounds=(0.0, 1.0) if share else UNBOUNDED)
    return Estimate(
        found.value,
        found.low,
        found.high,
        prompts,
        tuple(seeds),
        unit=unit,
        method="two-way bootstrap",
    )


def jackknife(statistic: Callable[[np.ndarray[Any, Any]], float], count: int, *, unit: str = "") -> Estimate:
    """A statistic of `count` prompts, given their indices, with its delete-a-group jackknife interval (95%).

    A statistic that is not finite has no value, and no interval where it is not finite without some group.

    Every 20th prompt makes a group, so that sets in a fixed order keep their classes in each. Source: Kott 2001,
    "The delete-a-group jackknife"; Student's t with groups - 1 degrees of freedom.
    """
    from scipy.stats import t

    everyone = np.arange(count)
    value = statistic(everyone)
    groups = min(GROUPS, count)
    if not np.isfinite(value):
        return Estimate(None, None, None, count, unit=unit)
    if groups < 2:
        return Estimate(value, None, None, count, unit=unit)
    without = np.array([statistic(everyone[everyone % groups != g]) for g in range(groups)])
    if not np.isfinite(without).all():
        return Estimate(value, None, None, count, unit=unit)
    error = np.sqrt((groups - 1) / groups * ((without - without.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, groups - 1) * error)
    return Estimate(value, value - reach, value + reach, count, unit=unit, method="delete-a-group jackknife")
