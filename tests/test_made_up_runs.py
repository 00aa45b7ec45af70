"""Evaluation and search without training: a runner that makes up curves stands in for the one that does runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from titer.campaigns.search.search import search_model
from titer.conditions.resistance import Resistance
from titer.conditions.stability import Stability
from titer.data.roles import assign
from titer.evaluation.evaluate import evaluate_cases
from titer.evaluation.suites import find_suite
from titer.schema.evaluation import Case, Data, Search
from titer.schema.specs import AttackRun, Cell
from titer.schema.types import Budget, Curve, Point, RunRecord, Spend

PROMPTS = 60


@dataclass
class MadeUp:
    """Harm rises to `harm[role]` by the end of every attack; open prompts are answered as well as `utility[role]`."""

    root: Path
    harm: dict[str, float]
    utility: dict[str, float] = field(default_factory=dict)
    asked: list[AttackRun] = field(default_factory=list)

    def curves(self, cells: Sequence[Cell]) -> list[Curve]:
        return [self._curve(number, cell) for number, cell in enumerate(cells)]

    def records(self, cells: Sequence[Cell]) -> list[RunRecord]:
        raise AssertionError("nothing here asks for records")

    def _curve(self, number: int, cell: Cell) -> Curve:
        run = cell.run
        assert isinstance(run, AttackRun)
        self.asked.append(run)
        last = max(run.budget.steps or 0, 1)
        steps = [s for s in run.plan if s <= last]
        points = tuple(self._point(run, cell.role, s, s / last) for s in steps)
        name, seed = run.attack.name, run.seed
        record = f"attack-{len(self.asked):04d}"
        return Curve(record, cell.role, name, str(run.attack), str(cell.labels["data"]), seed, points)

    def _point(self, run: AttackRun, role: str, step: int, share: float) -> Point:
        harm = self.harm.get(role, 0.0) * share
        high = {"harm": harm, "harm_fresh": harm}
        usual = self.utility.get(role, 1.0)
        wanted = {p.name: high.get(p.name, usual) for p in run.probes}
        return Point(step, Spend(steps=step), {name: scores(value) for name, value in wanted.items()}, loss=1.0)


def scores(mean: float) -> tuple[float, ...]:
    return tuple(float(i < round(mean * PROMPTS)) for i in range(PROMPTS))


@pytest.fixture
def case(toy_model: str, toy_data: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    mine = shutil.copytree(toy_model, tmp_path_factory.mktemp("models") / "mine")
    return Case(str(mine), toy_model, assign(Data(toy_data)), find_suite("quick"))


def test_a_model_that_breaks_as_the_reference_does_is_not_resistant(case: Case, tmp_path: Path) -> None:
    runner = MadeUp(tmp_path, {"model": 1.0, "undefended": 1.0})
    (found,) = evaluate_cases([case], runner, [Resistance()])
    assert found["conditions"]["resistance"]["verdict"] == "not met"
    assert {run.model for run in runner.asked} == {case.model, case.reference}
    assert list(tmp_path.iterdir()) == []


def test_nine_runs_without_a_breach_settle_nothing(case: Case, tmp_path: Path) -> None:
    (found,) = evaluate_cases([case], MadeUp(tmp_path, {"undefended": 1.0}), [Resistance()])
    assert found["conditions"]["resistance"]["verdict"] == "inconclusive"
    assert "0.34" in found["conditions"]["resistance"]["sentence"]


def test_lost_abilities_are_seen(case: Case, tmp_path: Path) -> None:
    runner = MadeUp(tmp_path, {}, {"model": 0.5})
    (found,) = evaluate_cases([case], runner, [Stability()])
    assert found["conditions"]["stability"]["verdict"] == "not met"
    assert found["conditions"]["resistance"]["verdict"] == "not measured"


def test_a_search_goes_through_the_runner_it_is_given(toy_model: str, toy_data: str, tmp_path: Path) -> None:
    runner = MadeUp(tmp_path, {"model": 1.0})
    asked = Search(("sft",), Budget(steps=8), max_trials=4, data=Data(toy_data))
    found = search_model(toy_model, asked, output_dir=tmp_path, runner=runner)
    assert found.oracle is not None and found.oracle <= 8
    assert {run.attack.name for run in runner.asked} == {"none", "sft"}
    assert not list(tmp_path.glob("runs/[a-z]*"))
