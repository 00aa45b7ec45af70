"""The plan's counts are the evaluation's own, its time is the measured speed times them, and its error is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from titer.evaluation.cells import plan_cells

from titer.cli import main
from titer.evaluation import cost as planning
from titer.evaluation import evaluate as evaluate_module
from titer.evaluation.cost import Cost, Past, past, past_words, plan_evaluation
from titer.evaluation.evaluate import setting_of
from titer.evaluation.suites import customised, find_suite
from titer.runs.store import RECORD
from titer.schema.errors import TiterError
from titer.schema.evaluation import Setting
from titer.schema.files import write_json
from titer.schema.specs import AttackRun
from titer.schema.types import RunRecord, Spend, to_json

COST = Cost(10, 100, 20, 5000, 1e9, 60.0, 2, 2**30, 2**20, seconds_a_step=0.5, seconds_a_probe=2.0)


@pytest.fixture
def setting(toy_model: str, toy_data: str) -> Setting:
    """Two seeds of one member at five steps; nothing trained on tasks."""
    suite = customised(find_suite("quick"), 5, (0, 1), (1e-3,))
    suite = replace(suite, n_train=8, n_eval=4)
    wanted = ("resistance", "stability")
    return setting_of(
        toy_model, toy_model, toy_data, suite=suite, conditions=wanted, controls={}, task_dataset="", max_new_tokens=4
    )


def test_runs_steps_and_probes_are_those_of_the_evaluation(setting: Setting, toy_model: str, tmp_path: Path) -> None:
    cost = plan_evaluation([toy_model], setting, tmp_path, workers=2)
    # model and reference are the same folder here: 2 seeds, 2 of the A/A comparison, one measurement
    assert (cost.runs, cost.steps) == (5, 4 * 5)
    assert cost.probes == 4 * len([s for s in setting.suite.plan if s <= 5]) + 1
    assert cost.seconds_a_step > 0 and cost.tokens > 0 and cost.flops > 0 and cost.disk_bytes > 0
    assert cost.seconds == pytest.approx(
        (cost.steps * cost.seconds_a_step + cost.probes * cost.seconds_a_probe) / 2 + planning.WORKER_START_SECONDS
    )


def test_the_cost_is_stated_before_anything_is_run(
    setting: Setting, toy_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def instead(*_: Any, **__: Any) -> Any:
        assert said, "runs began before their cost was stated"
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_module, "evaluate_models", instead)
    with pytest.raises(KeyboardInterrupt):
        evaluate_module.evaluate(
            toy_model, toy_model, setting.data.dataset, output_dir=tmp_path, announce=said.append, controls={},
            task_dataset="", max_steps=5, seeds=(0, 1), learning_rates=(1e-3,), conditions=("resistance", "stability"),
        )  # fmt: skip
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


def test_stability_alone_has_no_attack_to_measure(setting: Setting, toy_model: str, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="no attack is asked for"):
        plan_evaluation([toy_model], replace(setting, conditions=("stability",)), tmp_path)


@pytest.fixture
def done(setting: Setting, toy_model: str, tmp_path: Path) -> Callable[..., None]:
    """Put a finished run into the output folder, as if it had taken some seconds."""
    first = next(c.run for c in plan_cells(toy_model, setting) if c.run.attack.name == "sft")

    def put(name: str, seconds: float, run: AttackRun = first, **changes: Any) -> None:
        spec = to_json(replace(run, **changes))
        environment = {"wall_seconds": seconds}
        record = RunRecord(name, run.kind, spec, "finished", Spend(), 0, "now", environment)
        write_json(tmp_path / "runs" / name / RECORD, record)

    return put


def test_its_error_on_past_runs_is_told(done: Any, setting: Setting, toy_model: str, tmp_path: Path) -> None:
    assert past_words(past(tmp_path, [toy_model], COST)) == []
    done("attack-1", 4.0)
    done("attack-2", 6.0)
    done("attack-3", 99.0, model="another")
    done("attack-4", 99.0, attack=replace(plan_cells(toy_model, setting)[0].run.attack, name="none"))
    a_run = 5 * 0.5 + len(setting.suite.plan) * 2.0
    found = past(tmp_path, [toy_model], COST)
    assert found == Past(2, 10.0, 2 * a_run)
    assert past_words(found)[0].startswith("past runs: 2 finished attacks on these models took 10 s")


def test_the_command_takes_the_very_command_line(
    toy_model: str, toy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def instead(models: Any, setting: Setting, scratch: Any, *, workers: int) -> Cost:
        asked.update(models=models, steps=setting.suite.max_steps, workers=workers)
        return COST

    monkeypatch.setattr(planning, "plan_evaluation", instead)
    flags = ["--model", toy_model, "--reference", toy_model, "--dataset", toy_data, "--output_dir", str(tmp_path)]
    main(["plan", "evaluate", *flags, "--max_steps", "7", "--workers", "2"])
    assert asked == {"models": (toy_model,), "steps": 7, "workers": 2}
    assert "time: at most 1.0 minutes with 2 worker(s)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["plan", "ls"])
    assert end.value.code == 2 and "knows the cost of evaluate only" in capsys.readouterr().err
