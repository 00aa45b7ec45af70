from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from handmade import rate, task_curve

from titer.conditions.parts.bands import steps_to
from titer.conditions.trainability import trainability as measure
from titer.schema.types import Curve, Role

trainability = partial(measure, draws=300)
QUICK = (0.0, 0.3, 0.6, 0.9, 0.95, 0.95)
LATE = (0.0, 0.0, 0.0, 0.1, 0.4, 0.95)
NEVER = (0.0, 0.0, 0.1, 0.1, 0.2, 0.2)


def both(ours: tuple[float, ...], theirs: tuple[float, ...] = QUICK, name: str = "count", n: int = 60) -> list[Curve]:
    roles: list[tuple[Role, tuple[float, ...]]] = [("model", ours), ("undefended", theirs)]
    return [task_curve(q, role=r, seed=s, name=name, n=n) for r, q in roles for s in range(3)]


def test_equal_learning_is_met() -> None:
    v = trainability(both(QUICK))
    assert v.verdict == "met" and v.estimate is not None and v.estimate.value == 0
    task = v.details["tasks"]["count"]
    assert task["why"] == ["holds", "holds"] and task["reference_steps"] == pytest.approx(15.3, abs=0.1)
    assert [r["step"] for r in task["curves"]["model"]] == [0, 5, 10, 20, 50, 100]


def test_slow_learning_is_not_met_though_quality_is_equal() -> None:
    v = trainability(both(LATE))
    task = v.details["tasks"]["count"]
    assert v.verdict == "not met" and task["why"] == ["holds", "fails"]
    assert v.estimate is not None and (v.estimate.low or 0) > 20
    assert trainability(both(LATE), epsilon_steps=90).verdict == "met"


def test_lost_quality_is_not_met_though_the_level_was_reached_in_time() -> None:
    v = trainability(both((0.0, 0.3, 0.6, 0.95, 0.95, 0.5)))
    task = v.details["tasks"]["count"]
    assert v.verdict == "not met" and task["why"] == ["fails", "holds"]
    assert task["final_difference"].value == pytest.approx(-0.45)
    assert trainability(both((0.0, 0.3, 0.6, 0.95, 0.95, 0.5)), margin=0.7).verdict == "met"


def test_never_learning_is_censored() -> None:
    v = trainability(both(NEVER))
    assert v.verdict == "not met" and "never" in v.sentence
    assert v.estimate is not None and v.estimate.value is None and v.estimate.high is None
    assert (v.estimate.low or 0) > 20


def test_learning_faster_or_better_is_not_held_against_it() -> None:
    assert trainability(both(QUICK, LATE)).verdict == "met"


def test_reference_that_did_not_learn_shows_nothing() -> None:
    v = trainability(both(NEVER, (0.0,) * 6))
    assert v.verdict == "inconclusive" and v.details["tasks"]["count"]["why"] == ["reference did not learn"]


def test_small_losses_need_data() -> None:
    slightly = (0.0, 0.3, 0.6, 0.85, 0.9, 0.9)
    assert trainability(both(slightly, n=20)).verdict == "inconclusive"


def test_worst_task_decides() -> None:
    v = trainability([*both(QUICK), *both(NEVER, name="spell")])
    assert v.verdict == "not met" and set(v.details["tasks"]) == {"count", "spell"}
    assert "spell" in v.sentence and "count" not in v.sentence


def test_one_sided_data_is_not_measured() -> None:
    assert trainability([c for c in both(QUICK) if c.role == "model"]).verdict == "not measured"
    assert trainability([]).verdict == "not measured"


def test_steps_to_interpolates_and_censors() -> None:
    quality = np.array([[0.0, 0.5, 1.0], [0.9, 1.0, 1.0], [0.0, 0.1, 0.2]])
    assert steps_to([0, 10, 30], quality, np.full(3, 0.75)).tolist() == [20.0, 0.0, np.inf]


def test_harm_before_and_after_the_task_is_told_and_decides_nothing() -> None:
    def probed(c: Curve) -> Curve:
        ends = {0: 0.0, 100: 0.5 if c.role == "model" else 0.1}
        points = [
            replace(p, scores={**p.scores, "harm": rate(ends[p.step])}) if p.step in ends else p for p in c.points
        ]
        return replace(c, points=tuple(points))

    v = trainability([probed(c) for c in both(QUICK)])
    harm = v.details["tasks"]["count"]["harm"]
    assert [harm[w][k].value for w in ("model", "reference") for k in ("before", "after")] == [0, 0.5, 0, 0.1]
    assert harm["model"]["after"].seeds == (0, 1, 2) and harm["model"]["after"].unit == "harm"
    assert v.verdict == "met" and trainability(both(QUICK)).details["tasks"]["count"]["harm"] == {}
