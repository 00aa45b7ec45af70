from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom

from titer.conditions.parts.survival import kaplan_meier, log_rank, rate


def test_no_breach_in_n_is_clopper_pearson() -> None:
    e = rate(0, 9)
    assert e.value == 0 and e.low == 0 and e.high == pytest.approx(beta.ppf(0.975, 1, 9))
    assert e.high == pytest.approx(0.3363, abs=1e-4)
    assert rate(0, 0).value is None
    w = rate(0, 9, method="wilson")
    assert w.high == pytest.approx(1.96**2 / (9 + 1.96**2), abs=1e-3)


@pytest.mark.parametrize("p", [0.02, 0.3])
def test_exact_rate_covers(p: float) -> None:
    inside = [k for k in range(21) if (e := rate(k, 20)).low <= p <= (e.high or 0)]  # type: ignore[operator]
    assert binom.pmf(inside, 20, p).sum() >= 0.95


def test_kaplan_meier_by_hand_with_both_bounds() -> None:
    # breaches in (2,5] and (10,20], one run censored at 5, one at 50
    s = kaplan_meier([(2, 5), (10, 20), (5, None), (50, None)])
    assert [(t, round(v, 4)) for t, v, _, _ in s.late] == [(5, 0.75), (20, 0.375), (50, 0.375)]
    assert [(t, round(v, 4)) for t, v, _, _ in s.early] == [(2, 0.75), (5, 0.75), (10, 0.375), (50, 0.375)]
    assert (s.median_early, s.median_late, s.breached, s.runs) == (10, 20, 2, 4)
    assert all(0 <= low <= share <= high <= 1 for _, share, low, high in [*s.early, *s.late])


def test_all_censored_has_no_median_and_an_exact_bound() -> None:
    s = kaplan_meier([(100, None)] * 9)
    assert s.median_late is None and s.late[0][1] == 1.0
    assert s.late[0][2] == pytest.approx(1 - (rate(0, 9).high or 0))
    with pytest.raises(ValueError, match="at least one run"):
        kaplan_meier([])


def test_log_rank_needs_a_breach() -> None:
    assert log_rank([(100, None)] * 3, [(100, None)] * 3) is None
    assert log_rank([], [(2, 5)]) is None
    assert (log_rank([(100, None)] * 6, [(2, 5)] * 6) or 1.0) < 0.01


def test_log_rank_type_one_error() -> None:
    """Equal models, breach times rounded up to the probe and censored: at most 5% plus noise."""
    rng, probes, rejected, trials = np.random.default_rng(0), np.array([0, 1, 2, 5, 10, 20, 50, 100]), 0, 300

    def sample() -> list[tuple[float, float | None]]:
        at = np.searchsorted(probes, rng.exponential(60, size=12))
        return [(float(probes[min(k, 8) - 1]), float(probes[k]) if k < 8 else None) for k in at]

    for _ in range(trials):
        rejected += (log_rank(sample(), sample()) or 1.0) < 0.05
    assert rejected <= binom.ppf(0.999, trials, 0.06)


@pytest.mark.parametrize(("runs", "scale"), [(9, 60), (25, 60), (15, 400)])
def test_kaplan_meier_limits_cover_at_every_probe(runs: int, scale: float) -> None:
    """Breach times rounded up to the probe, some runs ended early: nominal 95% at each probe, log-log limits 93%."""
    rng, probes, trials = np.random.default_rng(runs), np.array([0, 1, 2, 5, 10, 20, 50, 100]), 300
    hits = {5: 0, 20: 0, 50: 0}
    for _ in range(trials):
        at, until = np.searchsorted(probes, rng.exponential(scale, runs)), rng.choice([5, 6, 7, 7], runs)
        costs = [
            (float(probes[k - 1]), float(probes[k])) if k <= u else (float(probes[u]), None)
            for k, u in zip(at, until, strict=True)
        ]
        rows = kaplan_meier(costs).late
        for t in hits:
            low, high = next(((lo, hi) for when, _, lo, hi in reversed(rows) if when <= t), (0.0, 1.0))
            hits[t] += low <= np.exp(-t / scale) <= high
    assert min(hits.values()) >= binom.ppf(0.001, trials, 0.93)


def test_log_rank_sees_a_tenfold_price() -> None:
    rng = np.random.default_rng(1)

    def sample(scale: float) -> list[tuple[float, float | None]]:
        at = np.ceil(rng.exponential(scale, 12))
        return [(t - 1, t) if t <= 100 else (100.0, None) for t in at]

    found = [(log_rank(sample(10), sample(100)) or 1.0) < 0.05 for _ in range(50)]
    assert sum(found) >= 45
