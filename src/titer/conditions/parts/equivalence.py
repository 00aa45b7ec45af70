"""Is a difference small enough: two one-sided tests (TOST) on paired scores, with the margin stated.

The tests keep their level at the margin for any n and for sparse, one-sided losses at a ceiling, where a paired t does
not (.18 instead of .05 at n 30). `holm` corrects for asking several times, `seen_loss` says what n could have shown.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from titer.conditions.parts.bounded import DRAWS, p_at_least, p_at_most
from titer.conditions.parts.curves import Array

POWER = 0.8


@dataclass(frozen=True, slots=True)
class Tost:
    """One-sided p-values: `p_below` small shows difference > -margin, `p_above` small shows difference < margin.

    `p_worse` small shows difference < -margin.
    """

    difference: float
    margin: float
    p_below: float
    p_above: float
    n: int
    p_worse: float = 1.0

    @property
    def p(self) -> float:
        """The p-value of equivalence: the larger of the two."""
        return max(self.p_below, self.p_above)


def tost(a: Array, b: Array, margin: float, *, seed: int = 0, draws: int = DRAWS) -> Tost:
    """TOST of a - b within (-margin, margin), paired by prompt, scores (prompts,) in [0, 1]; see `bounded`.

    When all differences are 0, p is the exact chance that n prompts hide a loss at the margin: (1 - margin)^n.
    Errors: ValueError on fewer than 2 prompts, unequal lengths or a margin that is not positive.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"tost needs two equally long arrays of at least 2 scores, not {len(a)} and {len(b)}")
    if not margin > 0:
        raise ValueError(f"the equivalence margin must be positive, not {margin}")
    difference = a - b
    below, above = (float(p_at_most(d, -margin, seed=seed, draws=draws)) for d in (difference, -difference))
    worse = float(p_at_least(difference, -margin, seed=seed, draws=draws))
    return Tost(float(difference.mean()), margin, below, above, len(difference), worse)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: the chance of any false one among all that are below alpha is at most alpha."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def prompts_needed(margin: float, alpha: float) -> int:
    """The fewest prompts on which a model without any loss can be shown not to have lost `margin`."""
    return math.ceil(math.log(alpha) / math.log(1 - margin)) if margin < 1 else 1


@lru_cache(maxsize=256)
def seen_loss(n: int, margin: float, alpha: float, power: float = POWER) -> float | None:
    """The smallest loss (in hundredths) that n prompts of 0 and 1 show to exceed the margin, with chance `power`.

    By the very test of `tost`, on a model that loses some prompts and gains none. Alpha is the level of one test,
    after any correction. None: not even a loss of everything would be seen.
    """
    from scipy.stats import binom

    lost = np.arange(n)

    def worse(count: int) -> bool:
        return float(p_at_least(np.where(lost < count, -1.0, 0.0), -margin)) < alpha

    least = bisect_left(range(n + 1), True, key=worse)
    losses = (k / 100 for k in range(int(100 * margin) + 1, 101))
    return next((loss for loss in losses if float(binom.sf(least - 1, n, loss)) >= power), None)
