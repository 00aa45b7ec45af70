"""Many runs: equal ones once, failures told, and two workers give what one gives."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from titer.data.roles import assign
from titer.runs import queue as queue_module
from titer.runs.inputs import identify
from titer.runs.runner import Runner
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.files import COMPLETIONS, CURVE
from titer.schema.specs import AttackRun, Cell, Named, ProbeSet
from titer.schema.types import Budget

ATTACK = Named("sft", {"learning_rate": 1e-2, "per_device_train_batch_size": 4})


@pytest.fixture
def run(toy_model: str, toy_data: str) -> Callable[..., AttackRun]:
    plan = assign(Data(toy_data))

    def build(seed: int = 0, **changes: Any) -> AttackRun:
        probes = (ProbeSet("harm", plan.harm("unseen", 2), max_new_tokens=3),)
        made = AttackRun(toy_model, ATTACK, plan.attack("unseen", 4, 0), probes, Budget(steps=2), plan=(0,), seed=seed)
        return replace(made, **changes)

    return build


def done(runs: list[AttackRun], root: Path, **options: Any) -> list[str]:
    return Runner(root, **options).do([Cell(r, {}) for r in runs])


def contents(root: Path) -> dict[str, bytes]:
    """What every run left, by id, but for the seconds it took."""
    found = {}
    for folder in (root / "runs").glob("[!.]*"):
        rows = [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]
        for row in rows:
            row["spend"]["device_seconds"] = 0
        found[folder.name] = json.dumps(rows).encode() + (folder / COMPLETIONS).read_bytes()
    return found


def test_ids_come_back_in_order_and_every_run_is_reported(run: Any, tmp_path: Path) -> None:
    told: list[tuple[int, str, str]] = []
    runs = [run(2), run(0), run(1)]
    ids = done(runs, tmp_path, report=lambda *what: told.append(what))
    assert ids == [identify(r) for r in runs]
    assert told == [(i, name, "") for i, name in enumerate(ids)]
    assert set(contents(tmp_path)) == set(ids)


def test_equal_runs_are_done_once(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = queue_module.execute

    def count(r: Any, *args: Any, **options: Any) -> Any:
        seeds.append(r.seed)
        return real(r, *args, **options)

    monkeypatch.setattr(queue_module, "execute", count)
    ids = done([run(0), run(1), run(0), run(0)], tmp_path, overwrite=True)
    assert ids[0] == ids[2] == ids[3] != ids[1]
    assert seeds == [0, 1]


def test_finished_runs_are_kept_and_not_redone(run: Any, tmp_path: Path) -> None:
    ids = done([run(0)], tmp_path)
    curve = Store(tmp_path).folder(ids[0]) / CURVE
    then = curve.stat().st_mtime_ns
    again = done([run(0), run(1)], tmp_path)
    assert again[0] == ids[0]
    assert curve.stat().st_mtime_ns == then
    done([run(0)], tmp_path, overwrite=True)
    assert curve.stat().st_mtime_ns > then


def test_a_failure_is_raised_and_what_was_finished_stays(run: Any, tmp_path: Path) -> None:
    runs = [run(0), run(1, attack=Named("sfft")), run(2)]
    with pytest.raises(TiterError, match="unknown attack 'sfft'"):
        done(runs, tmp_path)
    assert set(contents(tmp_path)) == {identify(run(0))}


def test_no_runs_are_no_work(tmp_path: Path) -> None:
    assert done([], tmp_path) == done([], tmp_path, workers=2) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_workers_give_what_one_gives_and_pass_on_a_failure(run: Any, tmp_path: Path) -> None:
    runs = [run(seed) for seed in range(4)]
    told: list[int] = []
    alone = done(runs, tmp_path / "one")
    ids = done(runs, tmp_path / "two", workers=2, report=lambda i, name, error: told.append(i))
    assert ids == alone
    assert sorted(told) == [0, 1, 2, 3]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    with pytest.raises(TiterError, match="unknown attack 'sfft': did you mean sft"):
        done([run(0), run(9, attack=Named("sfft"))], tmp_path / "two", workers=2)


ORPHAN = """
import os, signal, sys, time
from pathlib import Path
from titer.runs.executors.local import Local

def told(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    with Local().crew(told, [sys.argv[1]]):
        while not Path(sys.argv[1]).exists() or not Path(sys.argv[1]).read_text():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_command_that_started_them_is_killed(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    told = tmp_path / "pid"
    ended = subprocess.run([sys.executable, tmp_path / "orphan.py", told], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    worker = int(told.read_text())
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    psutil.Process(worker).kill()
    pytest.fail("the worker goes on without the command that started it")
