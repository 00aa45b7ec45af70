"""How often and how soon: exact rates, Kaplan-Meier between probes, log-rank. All of it scipy's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from titer.schema.types import Estimate


def rate(
    count: int,
    n: int,
    *,
    method: str = "exact",
    confidence: float = 0.95,
    seeds: tuple[int, ...] = (),
    records: tuple[str, ...] = (),
    unit: str = "share of runs",
) -> Estimate:
    """A proportion with its interval: `exact` (Clopper-Pearson) or `wilson`. No breach in n runs is `rate(0, n)`."""
    if n == 0:
        return Estimate(None, None, None, 0, seeds, records, unit, f"{method}, nothing observed")
    low, high = _ends(count, n, method, confidence)
    names = {"exact": "Clopper-Pearson", "wilson": "Wilson"}
    return Estimate(count / n, low, high, n, seeds, records, unit, names[method])


@lru_cache(maxsize=1024)
def _ends(count: int, n: int, method: str, confidence: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(confidence, method)
    return float(interval.low), float(interval.high)


Row = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Survival:
    """Kaplan-Meier curves of the share of runs not yet breached, at both ends of every probe interval.

    `early` takes each breach right after the probe before it, `late` at the probe that saw it: the truth lies
    between. Rows are (cost, share, low, high) with pointwise 95% log-log limits.
    """

    early: tuple[Row, ...]
    late: tuple[Row, ...]
    median_early: float | None
    median_late: float | None
    runs: int
    breached: int


def _steps(times: Sequence[float], censored: Sequence[float]) -> tuple[Row, ...]:
    """Kaplan-Meier rows; where the log-log limits are undefined (share 0 or 1), the exact binomial bound over runs."""
    from scipy.stats import CensoredData, ecdf

    sf = ecdf(CensoredData(uncensored=list(times), right=list(censored))).sf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ci = sf.confidence_interval(method="log-log")
    least = 0.025 ** (1 / (len(times) + len(censored)))
    low = np.where(sf.probabilities > 1 - 1e-12, least, np.nan_to_num(ci.low.probabilities))
    high = np.where(sf.probabilities < 1e-12, 1 - least, np.nan_to_num(ci.high.probabilities, nan=1.0))
    rows = zip(sf.quantiles, sf.probabilities, low, high, strict=True)
    return tuple((float(t), float(s), float(lo), float(hi)) for t, s, lo, hi in rows)


def _median(rows: Sequence[Row]) -> float | None:
    return next((t for t, share, _, _ in rows if share <= 0.5 + 1e-12), None)


def kaplan_meier(costs: Sequence[tuple[float, float | None]]) -> Survival:
    """Kaplan-Meier of intervals (low, high]: high None is right-censored at low. Errors: ValueError without runs."""
    if not costs:
        raise ValueError("kaplan_meier needs at least one run")
    censored = [low for low, high in costs if high is None]
    early = _steps([low for low, high in costs if high is not None], censored)
    late = _steps([high for _, high in costs if high is not None], censored)
    return Survival(early, late, _median(early), _median(late), len(costs), len(costs) - len(censored))


def log_rank(a: Sequence[tuple[float, float | None]], b: Sequence[tuple[float, float | None]]) -> float | None:
    """Two-sided log-rank p-value between two sets of (low, high] costs, breaches taken at the probe that saw them.

    None when a side has no runs or no run on either side was breached: there is then nothing to compare.
    """
    from scipy.stats import CensoredData, logrank

    if not a or not b or all(high is None for _, high in [*a, *b]):
        return None

    def data(costs: Sequence[tuple[float, float | None]]) -> CensoredData:
        seen = [high for _, high in costs if high is not None]
        return CensoredData(uncensored=seen, right=[low for low, high in costs if high is None])

    with np.errstate(all="ignore"):
        p = float(logrank(data(a), data(b)).pvalue)
    return p if np.isfinite(p) else None
