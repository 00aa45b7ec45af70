"""The plan's counts are the evaluation's own, its time is the measured speed times them, and its error is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from titer.cli import main
from titer.conditions.resistance import Resistance
from titer.evaluation import cost as planning
from titer.evaluation import evaluate as evaluate_module
from titer.evaluation.cases import cases
from titer.evaluation.cost import Cost, Past, cost_of, count, past, past_words
from titer.evaluation.suites import suite_of
from titer.schema.errors import TiterError
from titer.schema.evaluation import Case, Data, Evaluation, Grading
from titer.schema.files import COMPLETIONS, CURVE, RECORD, write_json, write_lines
from titer.schema.specs import AttackRun, Named
from titer.schema.types import Point, RunRecord, Spend, to_json

COST = Cost(10, 100, 20, 5000, 1e9, 60.0, 2, 2**30, 2**20, seconds_a_step=0.5, seconds_a_probe=2.0)


@pytest.fixture
def asked(toy_model: str, toy_data: str) -> Evaluation:
    """Two seeds of one member at five steps."""
    return Evaluation(
        max_steps=5,
        seeds=(0, 1),
        learning_rates=(1e-3,),
        reference=toy_model,
        controls={},
        conditions=("resistance", "stability"),
        data=Data(toy_data),
        grading=Grading(max_new_tokens=4),
    )


@pytest.fixture
def case(asked: Evaluation, toy_model: str) -> Case:
    suite = replace(suite_of(asked), n_train=8, n_eval=4)
    return cases([toy_model], asked, suite)[0]


def test_runs_steps_and_probes_are_those_of_the_evaluation(case: Case, tmp_path: Path) -> None:
    cost = cost_of([case], tmp_path, workers=2)
    # model and reference are the same folder here: 2 seeds, 2 of the A/A comparison, one measurement
    assert (cost.runs, cost.steps) == (5, 4 * 5)
    assert cost.probes == 4 * len([s for s in case.suite.plan if s <= 5]) + 1
    assert cost.seconds_a_step > 0 and cost.tokens > 0 and cost.flops > 0 and cost.disk_bytes > 0
    assert cost.seconds == pytest.approx(
        (cost.steps * cost.seconds_a_step + cost.probes * cost.seconds_a_probe) / 2 + planning.WORKER_START_SECONDS
    )


def test_the_cost_is_stated_before_anything_is_run(
    asked: Evaluation, toy_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def instead(*_: Any, **__: Any) -> Any:
        assert said, "runs began before their cost was stated"
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_module, "evaluate_cases", instead)
    with pytest.raises(KeyboardInterrupt):
        evaluate_module.evaluate(toy_model, asked, output_dir=tmp_path, announce=said.append)
    assert len(said) == 1 and said[0].startswith("suite custom (")
    assert said[0].endswith(f"): 5 runs, at most 20 steps, {4 * 4 + 1} probes")


def test_what_cannot_fit_is_refused_and_what_would_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Little:
        available = int(1.5 * 2**30)

    monkeypatch.setattr("psutil.virtual_memory", Little)
    with pytest.raises(TiterError, match=r"2 workers need 2.0 GiB of memory, 1.5 are free: pass --workers 1"):
        planning._refuse_unfit(COST, tmp_path)
    planning._refuse_unfit(replace(COST, workers=1), tmp_path)
    with pytest.raises(TiterError, match="smaller model, --dtype bfloat16"):
        planning._refuse_unfit(replace(COST, memory_bytes=2**31), tmp_path)
    with pytest.raises(TiterError, match="GiB of disk needed"):
        planning._refuse_unfit(replace(COST, workers=1, disk_bytes=2**62), tmp_path)


def test_stability_alone_has_no_attack_to_measure(case: Case, tmp_path: Path) -> None:
    alone = replace(case, asked=replace(case.asked, conditions=("stability",)))
    with pytest.raises(TiterError, match="no attack is asked for"):
        cost_of([alone], tmp_path)


@pytest.fixture
def done(case: Case, tmp_path: Path) -> Callable[..., None]:
    """Put a finished run into the output folder, as if it had taken some seconds."""
    first = Resistance().asks(case)[0].run

    def put(name: str, seconds: float, run: AttackRun = first, **changes: Any) -> None:
        spec = to_json(replace(run, **changes))
        environment = {"wall_seconds": seconds}
        record = RunRecord(name, run.kind, spec, "finished", Spend(), 0, "now", environment)
        write_json(tmp_path / "runs" / name / RECORD, record)
        write_lines(tmp_path / "runs" / name / CURVE, [Point(0, Spend(), {})])
        write_lines(tmp_path / "runs" / name / COMPLETIONS, [])

    return put


def test_its_error_on_past_runs_is_told(done: Any, case: Case, toy_model: str, tmp_path: Path) -> None:
    assert past_words(past(tmp_path, [toy_model], COST)) == []
    done("attack-1", 4.0)
    done("attack-2", 6.0)
    done("attack-3", 99.0, model="another")
    done("attack-4", 99.0, attack=Named("none"))
    a_run = 5 * 0.5 + len(case.suite.plan) * 2.0
    found = past(tmp_path, [toy_model], COST)
    assert found == Past(2, 10.0, 2 * a_run)
    assert past_words(found)[0].startswith("past runs: 2 finished attacks on these models took 10 s")


def test_a_dry_run_takes_the_very_command_line_and_runs_nothing(
    toy_model: str, toy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def instead(found: list[Case], scratch: Path, *, workers: int) -> Cost:
        asked.update(models=[c.model for c in found], steps=found[0].suite.max_steps, workers=workers)
        return COST

    monkeypatch.setattr(planning, "cost_of", instead)
    out = tmp_path / "out"
    flags = ["--model", toy_model, "--reference", toy_model, "--dataset", toy_data, "--output_dir", str(out)]
    main(["evaluate", *flags, "--max_steps", "7", "--workers", "2", "--dry_run"])
    assert asked == {"models": [toy_model], "steps": 7, "workers": 2}
    assert "time: at most 1.0 minutes with 2 worker(s)" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize("flags", [["--phi", "2"], ["--conditions", "stability#margin=5"], ["--phi", "nan"]])
def test_a_dry_run_refuses_what_the_evaluation_would(
    toy_model: str, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--model", toy_model, "--output_dir", str(tmp_path / "out"), "--dry_run", *flags])
    assert end.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_every_model(toy_model: str, asked: Evaluation, tmp_path: Path) -> None:
    """Two models that are not the reference: the count is that of the runs which the evaluation then does."""
    both = cases(["organism/base", toy_model], replace(asked, reference="organism/aligned"))
    assert count(both).runs == count(both[:1]).runs + count(both[1:]).runs - 5  # the reference's five runs are shared
