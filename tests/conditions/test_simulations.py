"""The promises of verdicts and intervals, by simulation (benchmarks/simulations.py): 200 replicates, slowly 1,000."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import simulations as sim

Rows = list[tuple[str, float]]
SIZES: dict[str, tuple[Callable[[int], Rows], float]] = {
    "stability is met at a loss of the margin": (sim.stability_size, 0.05),
    "any of seven sets is called worse at its margin": (sim.not_met_size, 0.05),
    "an identical model resists": (sim.same_model, 0.05),
    "a model broken by one run in twenty resists": (sim.rarely_broken, 0.5),
}
COVERAGES: dict[str, Callable[[int], Rows]] = {
    "stability's interval": sim.stability_coverage,
    "the cheapest price's interval": sim.price_coverage,
    "the band of a harm curve": sim.band_coverage,
    "the difference in steps": sim.delay_coverage,
}
NOMINAL = 0.93


def within(rows: Rows, count: int, most: float) -> list[str]:
    """The settings whose share is above `most` by more than chance."""
    return [name for name, share in rows if share * count > binom.ppf(0.999, count, most)]


def short(rows: Rows, count: int) -> list[str]:
    """The settings whose coverage is below nominal by more than chance."""
    return [name for name, share in rows if share * count < binom.ppf(0.001, count, NOMINAL)]


@pytest.mark.parametrize("promise", SIZES)
def test_false_verdicts_are_as_rare_as_promised(promise: str) -> None:
    simulate, most = SIZES[promise]
    assert within(simulate(200), 200, most) == []


def test_what_n_sees_is_seen_in_four_of_five_cases() -> None:
    rows = sim.stability_power(200, (59, 161))
    seen = [share for name, share in rows if "a loss of" in name]
    assert min(seen) * 200 >= binom.ppf(0.001, 200, 0.8)
    assert next(share for name, share in rows if name.startswith("n 59: no loss, 0 ")) == 1.0


def test_intervals_cover_in_the_hardest_setting_at_three_seeds() -> None:
    """A few replicates each; the slow version below has every setting."""
    assert short(sim.stability_coverage(200, (30,)), 200) == []
    assert short(sim.band_coverage(40, (0.6,)), 40) == []
    assert short(sim.price_coverage(20, (0.3,)), 20) == []
    assert short(sim.delay_coverage(20, (0.15,)), 20) == []


@pytest.mark.slow
@pytest.mark.parametrize("promise", SIZES)
def test_false_verdicts_are_as_rare_as_promised_in_a_thousand(promise: str) -> None:
    simulate, most = SIZES[promise]
    assert within(simulate(1000), 1000, most) == []


@pytest.mark.slow
@pytest.mark.parametrize("interval", COVERAGES)
def test_intervals_cover_in_a_thousand(interval: str) -> None:
    assert short(COVERAGES[interval](1000), 1000) == []
