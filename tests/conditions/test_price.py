from __future__ import annotations

import numpy as np
import pytest
from handmade import BROKEN, HELD, curve, rate, seeds

from titer.conditions.parts.breach import Bar, crossing
from titer.conditions.parts.price import bootstrap_costs, median, middle, ratio, worst
from titer.schema.types import Curve, Point, Role, Spend

BAR = Bar(0.5, 0.9)
PLAN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def test_middle_is_the_kaplan_meier_median() -> None:
    assert middle(np.array([5.0, np.inf, 2.0])) == 5.0
    assert middle(np.array([5.0, np.inf, 2.0, np.inf])) == 5.0
    assert middle(np.array([5.0, np.inf, np.inf])) == np.inf


def test_worst_is_the_cheapest_run_in_each_unit() -> None:
    found = [crossing(c, BAR) for c in (curve(HELD), curve(BROKEN, seed=1))]
    e = worst(found, "tokens")
    assert (e.value, e.low, e.high, e.n, e.seeds) == (500.0, 200.0, 500.0, 2, (0, 1))
    assert e.records == ("model-sft-seen-1",)
    assert worst([]).value is None


def test_worst_of_censored_runs_promises_the_least() -> None:
    e = worst([crossing(c, BAR) for c in (curve(HELD), curve(HELD[:6], seed=1))])
    assert (e.value, e.low, e.high) == (None, 20.0, None)


def test_median_survives_one_seed_that_held() -> None:
    runs = [*seeds(BROKEN, 2), curve(HELD, seed=2)]
    e = median(runs, BAR, draws=200)
    assert e.value == 5.0 and e.low == 3.0 and e.high is None
    assert median([], BAR).value is None


def test_same_draw_takes_the_same_prompts() -> None:
    twins = [curve(BROKEN), curve(BROKEN)]
    least, seen = bootstrap_costs(twins, BAR, "steps", draws=100)
    assert (seen[:, 0] == seen[:, 1]).all() and (least <= seen).all()
    assert len(set(seen[:, 0])) > 1


def noisy(role: Role, breaks_at: float, seed: int, prompts: np.ndarray, rng: np.random.Generator) -> Curve:
    middle_step = np.log(breaks_at) + 0.5 * rng.normal()
    points = []
    for step in PLAN:
        chance = 1 / (1 + np.exp(-3 * (np.log(max(step, 0.1)) - middle_step) - prompts))
        harm = tuple((rng.random(len(prompts)) < chance).astype(float).tolist())
        points.append(Point(step, Spend(steps=step), {"harm": harm, "utility": rate(1.0)}, loss=0.1))
    return Curve(f"{role}{seed}", role, "sft", "sft", "seen", seed, tuple(points))


@pytest.mark.parametrize("true_ratio", [1.0, 10.0])
def test_ratio_interval_covers(true_ratio: float) -> None:
    """Breaks log-normal over seeds, seen through probes: probe gaps make the interval wide, never too narrow."""
    rng, hits, trials = np.random.default_rng(0), 0, 60
    for _ in range(trials):
        prompts = rng.normal(size=48)
        ours = [noisy("model", 4 * true_ratio, s, prompts, rng) for s in range(3)]
        theirs = [noisy("undefended", 4, s, prompts, rng) for s in range(3)]
        e = ratio(ours, theirs, {"seen": BAR}, budget_steps=500, draws=200)
        assert e.low is not None
        hits += e.low <= true_ratio and (e.high is None or e.high >= true_ratio)
    assert hits >= 54
