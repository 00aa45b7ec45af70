"""Means of bounded scores over prompts: tests and limits that keep their level at any n, at the bounds too.

The sample is weighted at random, one Dirichlet share for each score and one for the worst score that could have gone
unseen (Gaffke 2005; Learned-Miller & Thomas 2019, arXiv 1905.06208). For scores of 0 and 1 the limit is
Clopper-Pearson's, for equal scores it is the chance that n prompts hide a deviating one. The share of the unseen score
is integrated out, so that draws only follow the spread of the sample. Simulated size and coverage: docs/statistics.md.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from titer.conditions.parts.curves import Array

DRAWS = 1000


@lru_cache(maxsize=8)
def _shares(n: int, seed: int, draws: int) -> Array:
    """Dirichlet shares (draws, n) of n scores."""
    sizes = np.random.default_rng((seed, n)).standard_exponential((draws, n))
    return np.asarray(sizes / sizes.sum(1, keepdims=True), dtype=np.float64)


def _chance(means: Array, n: int, bound: float, least: float) -> Array:
    """Chance along the last axis that a mean, diluted by an unseen score at `least`, is at most `bound`."""
    room = np.maximum(means - least, max(bound - least, 1e-300))
    return np.asarray((((bound - least) / room) ** n).mean(-1), dtype=np.float64)


def p_at_most(scores: Array, bound: float, *, least: float = -1.0, seed: int = 0, draws: int = DRAWS) -> Array:
    """One-sided p-values of `the mean is at most bound`, scores (..., prompts) of at least `least`."""
    n = scores.shape[-1]
    if bound <= least:
        return np.zeros(scores.shape[:-1])
    return _chance(scores @ _shares(n, seed, draws).T, n, bound, least)


def p_at_least(scores: Array, bound: float, *, most: float = 1.0, seed: int = 0, draws: int = DRAWS) -> Array:
    """One-sided p-values of `the mean is at least bound`, scores (..., prompts) of at most `most`."""
    return p_at_most(-scores, -bound, least=-most, seed=seed, draws=draws)


def lower_limit(scores: Array, tail: float, *, least: float = -1.0, seed: int = 0, draws: int = DRAWS) -> float:
    """The mean below which `scores` (prompts,) would be as good as this with a chance of `tail` only."""
    n = len(scores)
    means = _shares(n, seed, draws) @ scores
    low, high = least, float(scores.mean())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _chance(means, n, middle, least) < tail else (low, middle)
    return low


def limits(
    scores: Array,
    *,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """Both limits of the mean of `scores` (prompts,), each within `bounds`; they cover at least `confidence`."""
    tail = (1 - confidence) / 2
    low = lower_limit(scores, tail, least=bounds[0], seed=seed, draws=draws)
    high = -lower_limit(-scores, tail, least=-bounds[1], seed=seed, draws=draws)
    return max(low, bounds[0]), min(high, bounds[1])
