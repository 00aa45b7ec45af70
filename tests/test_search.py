"""The search on landscapes whose cheapest breach is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from titer.attacks import ATTACKS
from titer.campaigns.search.tpe import search
from titer.campaigns.search.trials import Plan, Trial, best_of, plan_search, upcoming
from titer.conditions.parts.breach import Bar
from titer.schema.errors import TiterError
from titer.schema.space import Choice, LogUniform, Whole
from titer.schema.specs import Named
from titer.schema.types import Budget, Curve, Point, Spend

PROBES = (0, 1, 2, 5, 10, 20, 50, 100)
BAR = Bar(phi=0.5, floor=0.9)
Harm = Callable[[Named, int, int], float]  # attack, seed, step
SPACES = {
    "dull": {"learning_rate": LogUniform(1e-5, 1e-1)},
    "sharp": {"learning_rate": LogUniform(1e-5, 1e-1), "size": Choice((4, 16)), "depth": Whole(1, 8)},
}
KNOWN = (
    Named("dull", {"learning_rate": 1e-3}),
    Named("dull", {"learning_rate": 1e-2}),
    Named("sharp", {"learning_rate": 1e-5}),
    Named("sharp", {"learning_rate": 1e-1}),
)
PLAN = Plan(SPACES, KNOWN, Budget(steps=100))


class World:
    """Runs synthetic attacks whose harm is `harm(attack, seed, step)`, and remembers what it was asked to run."""

    def __init__(self, harm: Harm, utility: float = 1.0) -> None:
        self.harm, self.utility = harm, utility
        self.calls: list[tuple[Named, int, float]] = []

    def __call__(self, attack: Named, seed: int, budget: Budget) -> Curve:
        assert budget.steps is not None
        self.calls.append((attack, seed, budget.steps))
        points: list[Point] = []
        for step in sorted({p for p in PROBES if p <= budget.steps} | {budget.steps}):
            harm = self.harm(attack, seed, step)
            scores = {"harm": (harm,), "utility": (self.utility if step else 1.0,)}
            points.append(Point(step, Spend(steps=step, tokens=step * 100), scores))
            if harm >= BAR.phi and self.utility >= 0.9:
                break
        return Curve("", "model", attack.name, str(attack), "unseen", seed, tuple(points))


def near(lr: float, best: float) -> float:
    """1 at the best learning rate, falling to 0 a decade away."""
    return max(0.0, 1 - abs(math.log10(lr / best)))


def needle(attack: Named, seed: int, step: int) -> float:
    """Breaches at step 5 in a band of 0.4 decades of one attack, with a slope around it; never elsewhere."""
    if attack.name == "dull":
        return 0.3
    close = near(attack.options["learning_rate"], 2e-3)
    return 1.0 if close > 0.8 and step >= 5 else min(close, 0.45) * min(step / 20, 1.0)


def test_a_planted_breach_is_found_and_its_price_is_right() -> None:
    found = search(World(needle), PLAN, BAR)
    assert found.best is not None
    assert found.best.attack.name == "sharp"
    assert 1 < found.oracle <= 5  # type: ignore[operator]
    assert found.search == sum(t.spend.steps for t in found.trials[: found.trials.index(first(found.trials)) + 1])
    assert found.search_spend == Spend(steps=int(found.search), tokens=int(found.search) * 100)


def first(trials: tuple[Trial, ...]) -> Trial:
    return next(t for t in trials if t.confirmed is not None)


def test_every_step_is_charged() -> None:
    world = World(needle)
    found = search(world, PLAN, BAR)
    calls = list(world.calls)
    used = [world(attack, seed, Budget(steps=int(limit))).points[-1].spend.steps for attack, seed, limit in calls]
    assert found.spend.steps == sum(used)


@pytest.mark.parametrize(("harm", "utility"), [(0.49, 1.0), (0.6, 0.2)])
def test_no_breach_is_made_up_where_there_is_none(harm: float, utility: float) -> None:
    found = search(World(lambda attack, seed, step: harm * (step > 0), utility), PLAN, BAR)
    assert (found.best, found.oracle, found.cheapest, found.search) == (None, None, None, None)
    assert found.stopped == "48 proposed settings without a breach"
    assert found.spend.steps == sum(t.spend.steps for t in found.trials) > 0
    assert {t.harm for t in found.trials} == {harm if utility == 1.0 else 0.0}, "a broken model guides nobody"


def test_the_luck_of_one_seed_is_not_reported_and_does_not_hide_the_real_breach() -> None:
    def lucky(attack: Named, seed: int, step: int) -> float:
        if attack == KNOWN[0]:
            return float(seed == 0 and step >= 2)
        return float(attack.name == "sharp" and step >= 20)

    found = search(World(lucky), PLAN, BAR)
    assert found.trials[0].price == 2
    assert found.trials[0].confirmed is None
    assert found.best is not None
    assert found.best.attack.name == "sharp"
    assert 5 < found.oracle <= 20  # type: ignore[operator]
    calls = [t.spend.steps for t in found.trials[: first(found.trials).number + 1]]
    assert found.search == sum(calls), "the lucky breach does not count as the first"


def test_no_trial_may_spend_what_the_cheapest_confirmed_breach_cost() -> None:
    found = search(World(needle), PLAN, BAR)
    for i, trial in enumerate(found.trials):
        best = best_of(found.trials[:i])
        if best is not None:
            assert trial.limit < best.confirmed  # type: ignore[operator]
            assert trial.spend.steps <= trial.limit


def test_a_slow_riser_survives_flat_settings_with_more_harm() -> None:
    def slow(attack: Named, seed: int, step: int) -> float:
        return step / 160 if attack == KNOWN[3] else 0.4

    found = search(World(slow), PLAN, BAR)
    assert found.best is not None
    assert found.best.attack == KNOWN[3]
    assert found.best.rung == 3
    flat = [t for t in found.trials if t.attack != KNOWN[3] and t.wave == 0]
    assert sum(t.rung == 3 for t in flat) < sum(t.rung == 0 for t in flat), "nothing was dropped on the way up"


def test_what_ended_before_its_limit_is_not_run_again() -> None:
    class Short(World):
        def __call__(self, attack: Named, seed: int, budget: Budget) -> Curve:
            return super().__call__(attack, seed, Budget(steps=1) if attack.name == "dull" else budget)

    world = Short(lambda attack, seed, step: 0.1 + step / 1000)
    search(world, PLAN, BAR)
    assert max(limit for a, _, limit in world.calls if a.name == "sharp") == 100, "nothing climbed"
    assert len([a for a, _, _ in world.calls if a in KNOWN[:2]]) == 2


def test_a_cheap_breach_is_found_before_anything_ran_in_full() -> None:
    world = World(lambda attack, seed, step: float(attack == KNOWN[2] and step >= 5))
    found = search(world, PLAN, BAR)
    assert found.oracle == 5
    assert max(limit for _, _, limit in world.calls) <= 20  # 4 times the price, on fresh seeds
    assert found.search == 12 + 12 + 5  # T/8 of the two settings before it


def test_a_model_that_breaches_untouched_ends_the_search_at_once() -> None:
    found = search(World(lambda *_: 1.0), PLAN, BAR)
    assert (len(found.trials), found.oracle, found.search, found.stopped) == (1, 0, 0, "a breach costs nothing")


def test_the_best_settings_found_improve_on_the_known_ones() -> None:
    """A smooth valley: price 5 at the best learning rate, 100 a decade away."""

    def valley(attack: Named, seed: int, step: int) -> float:
        close = near(attack.options["learning_rate"], 2e-4)
        return 0.5 * step / (5 + 95 * (1 - close)) if close > 0 else 0.0

    found = search(World(valley), replace(PLAN, patience=40), BAR)
    known = [t.confirmed for t in found.trials if t.wave == 0 and t.confirmed is not None]
    assert found.oracle is not None
    assert found.oracle < min(known, default=100)
    assert found.oracle <= 20


def test_it_stops_at_its_total_and_at_its_trials() -> None:
    quiet = World(lambda *_: 0.2)
    found = search(quiet, replace(PLAN, total=150), BAR)
    assert found.stopped == "total of 150 steps spent"
    assert 150 <= found.spend.steps < 150 + 100
    assert search(quiet, replace(PLAN, max_trials=3), BAR).stopped == "3 trials"


def test_prices_in_tokens() -> None:
    def run(attack: Named, seed: int, budget: Budget) -> Curve:
        assert budget.steps == 100
        assert isinstance(budget.tokens, int)
        return World(needle)(attack, seed, Budget(steps=min(budget.tokens // 100, 100)))

    found = search(run, replace(PLAN, unit="tokens", budget=Budget(steps=100, tokens=10_000)), BAR)
    assert found.unit == "tokens"
    assert found.oracle is not None
    assert 100 < found.oracle <= 500
    assert found.search == found.search_spend.tokens  # type: ignore[union-attr]


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The second search runs only what the first had left; the known settings come out as in one go."""
    slow = World(lambda attack, seed, step: step / 160 if attack == KNOWN[3] else 0.4)
    whole = search(World(slow.harm), PLAN, BAR)
    path = tmp_path / "search.journal"
    for limit in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            search(_interrupted(World(slow.harm), after=limit), PLAN, BAR, journal=path)
    world = World(slow.harm)
    resumed = search(world, PLAN, BAR, journal=path)
    wave = [t for t in whole.trials if t.wave == 0]
    assert list(resumed.trials[: len(wave)]) == wave
    own = [t for t in resumed.trials if t.number >= 3 + 7]
    assert len(world.calls) == len(own) + sum(len(t.replicates) for t in own)


def _interrupted(world: World, after: int) -> Callable[[Named, int, Budget], Curve]:
    def run(attack: Named, seed: int, budget: Budget) -> Curve:
        if len(world.calls) == after:
            raise KeyboardInterrupt
        return world(attack, seed, budget)

    return run


def test_the_same_plan_gives_the_same_search() -> None:
    assert search(World(needle), PLAN, BAR) == search(World(needle), PLAN, BAR)


def test_what_comes_next_follows_from_the_trials() -> None:
    assert upcoming([], PLAN) == (0, 0, KNOWN[0])
    assert upcoming([], replace(PLAN, known=())) == (1, 0, None)
    tried = [Trial(i, a, 0, 0, 12, None, Spend(steps=12), harm=i / 10) for i, a in enumerate(KNOWN)]
    assert upcoming(tried[:2], PLAN) == (0, 0, KNOWN[2])
    assert upcoming(tried, PLAN) == (0, 1, KNOWN[3]), "the most harmful first"
    higher = replace(tried[3], number=4, rung=1, limit=25, spend=Spend(steps=25))
    assert upcoming([*tried, replace(higher, harm=0.4)], PLAN) == (0, 2, KNOWN[3]), "and on to the top"
    assert upcoming([*tried, replace(higher, harm=0.1)], PLAN) == (0, 1, KNOWN[2]), "unless another is more harmful"
    assert upcoming([replace(t, end="diverged") for t in tried], PLAN) == (1, 0, None)


def test_the_plan_of_the_zoo() -> None:
    plan = plan_search(Budget(steps=50))
    assert set(plan.spaces) == set(ATTACKS) - {"none", "merge-with-base", "base-difference"}
    assert plan.known[0].name == "sft"
    given = plan_search(Budget(steps=50), attacks=["merge-with-base", "sft"], fixed={"merge-with-base": {"base": "b"}})
    assert all(k.options["base"] == "b" for k in given.known if k.name == "merge-with-base")
    found = search(World(lambda *_: 0.1), replace(given, persistence=4, wave=4), BAR)
    assert all(t.attack.options["base"] == "b" for t in found.trials if t.attack.name == "merge-with-base")


def test_an_attack_that_lacks_what_it_needs_does_not_end_the_search() -> None:
    world = World(needle)

    def run(attack: Named, seed: int, budget: Budget) -> Curve:
        if attack.name == "dull":
            raise TiterError("attack dull: needs benign examples")
        return world(attack, seed, budget)

    found = search(run, PLAN, BAR)
    assert found.best is not None
    refused = [t for t in found.trials if t.attack.name == "dull"]
    assert {t.end for t in refused} == {"error: attack dull: needs benign examples"}
    assert {t.rung for t in refused} == {0}
    assert all(t.spend == Spend() and t.price is None for t in refused)


def test_a_budget_without_the_unit_says_what_to_pass() -> None:
    with pytest.raises(TiterError, match=r"--budget\.tokens"):
        search(World(needle), replace(PLAN, unit="tokens"), BAR)
