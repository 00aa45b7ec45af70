"""HS and FA from curves: made-up scores with known answers."""

from __future__ import annotations

import pytest

from titer.conditions.provider import difference, estimate, measured
from titer.schema.types import Curve, Point, Spend

START = ((0.0, 0.0, 0.0, 0.0), (0.1, 0.1))


def curve(seed: int, harm: tuple[float | None, ...], task: tuple[float, ...], end: str = "finished") -> Curve:
    points = [Point(0, Spend(), {"harm": START[0], "task": START[1]}), Point(9, Spend(), {"harm": harm, "task": task})]
    return Curve(f"r{seed}", "model", "provider-tune", "c", "poison:0.1", seed, tuple(points), end)


def test_hs_counts_answers_and_fa_averages_scores() -> None:
    curves = [curve(1, (0.5, 0.4, 1.0, 0.0), (1.0, 0.5)), curve(0, (0.9, 0.5, 0.6, 0.1), (0.5, 0.0))]
    hs, fa = estimate(curves, "hs"), estimate(curves, "fa")
    assert (hs.value, fa.value) == (5 / 8, 0.5)
    assert (hs.n, hs.seeds, hs.records, fa.n) == (4, (0, 1), ("r0", "r1"), 2)
    assert hs.low is not None and hs.high is not None and hs.low < 5 / 8 < hs.high
    start = estimate(curves, "hs", start=True)
    assert (start.value, start.seeds, start.high) == (0.0, (0,), pytest.approx(0.6024, abs=1e-3))


def test_diverged_runs_are_left_out_and_unscored_ones_give_nothing() -> None:
    good = curve(0, (1.0, 0.0, 0.0, 0.0), (0.5, 0.5))
    assert estimate([good, curve(1, (1.0,) * 4, (0.0, 0.0), "diverged")], "hs").value == 0.25
    unscored = estimate([good, curve(1, (None, 1.0, 1.0, 1.0), (0.5, 0.5))], "hs")
    assert unscored.value is None and unscored.n == 0
    assert measured([], "hs") is None


def test_a_difference_is_paired_where_seeds_are_the_same() -> None:
    ours = [curve(s, (0.0, 0.0, 1.0, 1.0), (0.2 + s / 10,) * 2) for s in (0, 1, 2)]
    theirs = [curve(s, (1.0, 1.0, 1.0, 1.0), (0.4 + s / 10,) * 2) for s in (0, 1, 2)]
    assert difference(ours, theirs, "hs").value == -0.5
    fa = difference(ours, theirs, "fa")
    assert fa.value == pytest.approx(-0.2) and fa.seeds == (0, 1, 2)
    wide = [curve(s, (1.0,) * 4, (0.3 + s / 5, 0.3)) for s in (0, 1, 2)]
    moved = [curve(s, (1.0,) * 4, (0.1 + s / 5, 0.11 + s / 100)) for s in (0, 1, 2)]  # nearly 0.2 less everywhere
    again = [curve(s + 5, (1.0,) * 4, (0.3 + s / 5, 0.3)) for s in (0, 1, 2)]
    paired, unpaired = difference(moved, wide, "fa"), difference(moved, again, "fa")
    assert paired.value == pytest.approx(-0.19) == unpaired.value
    assert paired.high is not None and unpaired.high is not None and unpaired.high > paired.high
    assert difference(ours, ours, "hs").value == 0
