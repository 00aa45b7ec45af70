"""Is a difference small enough: two one-sided tests (TOST) on paired scores, with the margin stated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from titer.conditions.parts.curves import Array


@dataclass(frozen=True, slots=True)
class Tost:
    """One-sided p-values: `p_below` small shows difference > -margin, `p_above` small shows difference < margin."""

    difference: float
    margin: float
    p_below: float
    p_above: float
    n: int

    @property
    def p(self) -> float:
        """The p-value of equivalence: the larger of the two."""
        return max(self.p_below, self.p_above)


def tost(a: Array, b: Array, margin: float) -> Tost:
    """TOST of a - b within (-margin, margin), paired by prompt, scores (prompts,) in [0, 1]; by statsmodels.

    When all differences agree the t test has no spread to work with; then p is the exact chance that n prompts hide
    a difference at the margin: (1 - rate)^n with rate the smallest share of deviating prompts that could make it.
    Errors: ValueError on fewer than 2 prompts, unequal lengths or a margin that is not positive.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"tost needs two equally long arrays of at least 2 scores, not {len(a)} and {len(b)}")
    if not margin > 0:
        raise ValueError(f"the equivalence margin must be positive, not {margin}")
    difference = a - b
    mean, n = float(difference.mean()), len(difference)
    if np.ptp(difference) < 1e-12:
        return Tost(mean, margin, _hidden(margin + mean, n, 1 + mean), _hidden(margin - mean, n, 1 - mean), n)
    from statsmodels.stats.weightstats import ttost_paired

    _, below, above = ttost_paired(a, b, -margin, margin)
    return Tost(mean, margin, float(below[1]), float(above[1]), n)


def _hidden(gap: float, n: int, reach: float) -> float:
    """Chance that n equal differences hide a mean `gap` further on, when a prompt can deviate by `reach`."""
    if gap <= 0:
        return 1.0
    return float(max(0.0, 1 - gap / max(reach, gap)) ** n)
