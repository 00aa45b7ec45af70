"""Studies: the file and its cells, going on past failures, two at once, and what a kill or a full disk leaves."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from titer.campaigns.study.file import Study, parse_study, read_study
from titer.campaigns.study.study import export_rows, status_of
from titer.report.study import duration, page
from titer.runs import queue as queue_module
from titer.runs.execute import execute
from titer.runs.executors.local import Processes
from titer.runs.locks import Claims
from titer.runs.queue import Board, DiskTrouble, Work, run_study, work
from titer.runs.runner import Runner
from titer.runs.store import MODEL, Store
from titer.schema.errors import TiterError
from titer.schema.files import CURVE, RECORD
from titer.schema.specs import Cell

Make = Callable[..., Study]
BAD = {"name": "sft", "options": {"per_device_train_batch_size": 4, "max_length": 2}, "label": "too-short"}


@pytest.fixture
def raw(toy_model: str, toy_data: str) -> dict[str, Any]:
    """A study of 6 cells that take milliseconds: an immunization, its 2 attacks and 3 of the undefended model."""
    train = {"learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": 4}
    attack = {"name": "sft", "options": {"learning_rate": 1e-2, "per_device_train_batch_size": 4}}
    return {
        "name": "toy",
        "models": [toy_model],
        "dataset": toy_data,
        "defences": ["none", {"name": "gradient-ascent", "train": train}],
        "attacks": [attack],
        "seeds": [0, 1],
        "max_steps": 2,
        "n_train": 6,
        "n_eval": 3,
        "max_new_tokens": 3,
        "include": [{"defences": ["none"], "seeds": [2]}],
    }


@pytest.fixture
def make(raw: dict[str, Any]) -> Make:
    return lambda **changes: parse_study(raw | changes)


def files(root: Path) -> dict[str, bytes]:
    """Everything a study leaves that must not depend on how often it was killed; times and dates are left out."""
    found = {}
    for path in sorted((root / "runs").glob("[!.]*/**/*")):
        name = str(path.relative_to(root))
        if path.name == RECORD:
            record = json.loads(path.read_text())
            found[name] = json.dumps([record["id"], record["result"], record["data_hashes"]]).encode()
        elif path.name == CURVE:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row["spend"].pop("device_seconds")
            found[name] = json.dumps(rows).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


# ------------------------------------------------------------------------------------------------------------- file


def test_the_cells_are_the_product_and_each_is_there_once(make: Make) -> None:
    study = make(data=["unseen", "withheld"])
    kinds = [c.run.kind for c in study.cells]
    assert kinds.count("immunize") == 1 and kinds.count("attack") == 2 * 2 * 2 + 2
    made = next(c for c in study.cells if c.run.kind == "immunize")
    needy = [c for c in study.cells if c.needs]
    assert len(needy) == 4 and {c.run.model for c in needy} == {f"run:{needy[0].needs}"}
    assert not made.needs and made.steps == 3 and needy[0].steps == 2
    assert len({c.key for c in study.cells}) == len(study.cells)
    assert len(make(include=[{"seeds": [0, 1]}]).cells) == len(make(include=[]).cells)


def test_cells_on_several_processes_are_done_one_at_a_time(make: Make, tmp_path: Path) -> None:
    cells = make(accelerate_config="fsdp2:2").cells
    assert {c.run.compute.accelerate_config for c in cells} == {"fsdp2:2"}
    with pytest.raises(TiterError, match="--workers 1"):
        run_study(cells, tmp_path, workers=2)


def test_exclusions_take_cells_out_and_what_only_they_needed(make: Make) -> None:
    assert not [c for c in make(exclude=[{"defence": "gradient-ascent"}]).cells if c.run.kind == "immunize"]
    every = make(exclude=[{"defence": "gradient-ascent", "seed": [0, 1]}])
    assert {c.run.kind for c in every.cells} == {"attack"}
    some = make(exclude=[{"defence": "gradient-ascent", "seed": 0}])
    assert [c.labels["seed"] for c in some.cells if c.needs] == [1]
    with pytest.raises(TiterError, match="no cells"):
        make(include=[], exclude=[{"attack": "sft"}])


def test_without_attacks_a_study_only_makes_models(make: Make) -> None:
    assert [c.run.kind for c in make(attacks=[], include=[]).cells] == ["immunize"]


def test_a_grid_covers_fields_of_the_defence_and_of_its_training(make: Make) -> None:
    grid = {"name": "repnoise", "grid": {"noise_weight": [0.1, 0.2], "max_steps": [2, 3]}}
    study = make(defences=[grid], attacks=[], include=[])
    assert {(c.run.defence.options["noise_weight"], c.steps) for c in study.cells} == {
        (a, b) for a in (0.1, 0.2) for b in (2, 3)
    }
    assert len({c.labels["defence"] for c in study.cells}) == 4


def test_numbers_in_the_file_are_numbers(tmp_path: Path, raw: dict[str, Any]) -> None:
    text = yaml.safe_dump(raw | {"attacks": "ATTACKS"}).replace(
        "ATTACKS", "[{name: sft, grid: {learning_rate: [1e-4]}}]"
    )
    (tmp_path / "s.yaml").write_text(text)
    attacks = [c.run for c in read_study(tmp_path / "s.yaml").cells if c.run.kind == "attack"]
    assert {run.attack.options["learning_rate"] for run in attacks} == {1e-4}


def test_a_suite_stands_for_its_members(make: Make) -> None:
    study = make(defences=["none"], attacks=[{"suite": "quick"}], include=[], seeds=[0])
    assert sorted(c.run.attack.options["learning_rate"] for c in study.cells) == [1e-4, 3e-4, 1e-3]


def test_presets_are_sound_and_give_way_to_the_file() -> None:
    assert len(parse_study({"preset": "quick"}).cells) == 2 + 3 * 3 * 3
    assert len(parse_study({"preset": "smoke"}).cells) == 3
    assert len(parse_study({"preset": "smoke", "seeds": [0, 1]}).cells) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seedz": [0]}, "unknown key 'seedz': did you mean seeds"),
        ({"preset": "quik"}, "unknown preset 'quik'"),
        ({"models": []}, "models: at least one"),
        ({"models": ["/no/such/folder"]}, "no such folder"),
        ({"defences": ["repnoize"]}, "unknown defence 'repnoize': did you mean repnoise"),
        ({"defences": [{"name": "repnoise", "train": {"max_step": 3}}]}, "did you mean max_steps"),
        ({"defences": [{"name": "repnoise", "optoins": {}}]}, "did you mean options"),
        ({"defences": [{"suite": "quick"}]}, "suites are of attacks"),
        ({"attacks": ["sftt"]}, "unknown attack 'sftt'"),
        ({"attacks": [{"name": "sft", "options": {"learning_rat": 1}}]}, "did you mean learning_rate"),
        ({"attacks": [{"name": "sft", "train": {"max_steps": 1}}]}, "goes into its options"),
        ({"attacks": [{}]}, "give a name"),
        ({"attacks": [7]}, "expected a name"),
        ({"attacks": "sft"}, "attacks: expected a list"),
        ({"data": ["unsen"]}, "unknown tag 'unsen'"),
        ({"seeds": 3}, "seeds"),
        ({"max_steps": "many"}, "max_steps"),
        ({"exclude": [{"defense": "x"}]}, "did you mean defence"),
        ({"exclude": ["x"]}, "expected labels and values"),
        ({"include": [{"budget": 3}]}, "include 1: unknown key 'budget'"),
        ({"withhold": ["nothing"]}, "cannot withhold"),
        ({"accelerate_config": "fsdp2"}, "say how many processes"),
        ({"accelerate_config": "fsdp2:2", "attacks": ["lora"]}, "lora works on one process"),
        ({"load_in_4bit": True}, "only an adapter trains"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(make: Make, changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(TiterError) as caught:
        make(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not YAML"), ("- a", "expected keys"), (None, "no such file")])
def test_a_file_that_is_no_study_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(TiterError, match=message) as caught:
        read_study(tmp_path / "s.yaml")
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- run


def test_all_cells_are_done_once_and_found_again(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make().cells
    board = Board(cells, tmp_path)
    assert board.counts() == dict(done=0, running=0, ready=4, waiting=2, blocked=0, failed=0)
    assert board.steps_left() == 3 + 5 * 2 and board.eta(1) is None
    done = run_study(cells, tmp_path)
    assert done.counts()["done"] == 6 and done.steps_left() == 0
    attacked = next(i for i, c in enumerate(cells) if c.needs)
    record = done.record(attacked)
    assert record is not None and record.spec["model"] == str(Store(tmp_path).folder(cells[attacked].needs) / MODEL)
    assert not [
        p for p in (tmp_path / "runs").rglob(".*") if p.is_file() or p.name[1:] not in ("claims", "checkpoints")
    ]
    monkeypatch.setattr("titer.runs.queue.execute", None)
    assert run_study(cells, tmp_path).counts()["done"] == 6


def test_a_failure_is_kept_with_its_traceback_and_the_rest_goes_on(tmp_path: Path, make: Make, raw: Any) -> None:
    study = make(attacks=[BAD, *raw["attacks"]], include=[])
    board = run_study(study.cells, tmp_path)
    assert board.counts() == dict(done=5, running=0, ready=0, waiting=0, blocked=0, failed=4)
    i = board.states().index("failed")
    failure = board.failure(i)
    assert failure is not None and "max_length" in failure["error"]
    assert "Traceback" in failure["traceback"] and failure["labels"]["attack"] == "too-short"
    assert Board(study.cells, tmp_path).retry() == 4
    assert Board(study.cells, tmp_path).counts()["ready"] == 4


def test_what_needs_a_failed_model_is_blocked_until_it_is_retried(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Any, root: Any, **options: Any) -> Any:
        if run.kind == "immunize":
            raise ValueError("two\nlines")
        return execute(run, root)

    monkeypatch.setattr("titer.runs.queue.execute", broken)
    cells = make().cells
    board = run_study(cells, tmp_path)
    assert (board.counts()["failed"], board.counts()["blocked"], board.counts()["done"]) == (1, 2, 3)
    monkeypatch.undo()
    assert run_study(cells, tmp_path).counts()["failed"] == 1
    Board(cells, tmp_path).retry()
    assert run_study(cells, tmp_path).counts()["done"] == 6


def test_a_cell_claimed_elsewhere_is_left_alone(tmp_path: Path, make: Make) -> None:
    cells = make(include=[], defences=["none"]).cells
    board = Board(cells, tmp_path)
    claim = board.claims.claim(board.id(0) or "")
    assert claim is not None and board.states() == ["running", "ready"]
    taken = queue_module._take(board, "")
    assert taken is not None and taken[0] == 1
    assert queue_module._take(board, "") is None


@pytest.mark.parametrize("file", [RECORD, f"{MODEL}/model.safetensors"])
def test_a_cut_off_file_makes_its_cell_be_done_again(tmp_path: Path, make: Make, file: str) -> None:
    cells = make().cells
    run_study(cells, tmp_path)
    expected = files(tmp_path)
    folder = Store(tmp_path).folder(next(c.needs for c in cells if c.needs))
    os.truncate(folder / file, (folder / file).stat().st_size // 2)
    board = Board(cells, tmp_path)
    assert (board.counts()["ready"], board.counts()["waiting"]) == (1, 2)
    assert run_study(cells, tmp_path).counts()["done"] == 6
    assert files(tmp_path) == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_stops_the_study_in_one_line_and_fails_no_cell(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cells = make().cells
    real, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 9:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskTrouble) as caught:
        run_study(cells, tmp_path)
    assert os.strerror(code) in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    counts = Board(cells, tmp_path).counts()
    assert counts["failed"] == 0 and 0 < counts["done"] < 6
    assert run_study(cells, tmp_path).counts()["done"] == 6


def test_an_output_folder_that_is_a_file_is_one_line(tmp_path: Path, make: Make) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DiskTrouble, match="cannot be written"):
        run_study(make().cells, tmp_path / "out")


def test_equal_runs_of_other_commands_wait_for_the_claim(tmp_path: Path, make: Make) -> None:
    """`Runner`, which every command goes through, holds the claim while it works and leaves none behind."""
    run = make().cells[-1].run
    held: list[Any] = []
    run_id = Runner(tmp_path, report=lambda i, name, error: held.append(Claims(tmp_path).owner(name))).do(
        [Cell(run, {})]
    )[0]
    assert held == [None] and not list((tmp_path / "runs").glob(".claims/*"))
    assert Store(tmp_path).record(run_id) is not None


# ---------------------------------------------------------------------------------------------------- show and tell


def test_time_to_go_comes_from_cells_of_the_same_group_then_from_steps(tmp_path: Path, make: Make) -> None:
    cells = make().cells
    board = Board(cells, tmp_path)
    attack = next(i for i, c in enumerate(cells) if c.run.kind == "attack")
    board.seconds = {attack: 4.0}
    assert board.eta(1) == pytest.approx(5 * 4.0 + 3 * 4.0 / 2)
    assert board.eta(2) == pytest.approx(13.0)
    assert [duration(s) for s in (0.2, 40, 720, 12000)] == ["1 s", "40 s", "12 min", "3 h 20 min"]


def test_export_has_a_row_per_cell_and_the_page_escapes(tmp_path: Path, make: Make, raw: Any) -> None:
    study = make(attacks=[{**BAD, "label": "<b>bad</b>"}, *raw["attacks"]], include=[], name="<i>")
    board = run_study(study.cells, tmp_path)
    rows = export_rows(board)
    assert len(rows) == 9 and len({tuple(r) for r in rows}) == 1
    attack = next(r for r in rows if r["kind"] == "attack" and r["state"] == "done")
    assert attack["steps"] == 2 and 0 <= attack["harm_end"] <= attack["harm_max"] <= 1
    assert next(r for r in rows if r["state"] == "failed")["error"]
    text = page(status_of(board, "<i>", 1, "now"))
    assert "<b>bad" not in text and "<i>" not in text and "&lt;b&gt;bad" in text and "Traceback" in text
    assert "refresh" not in text and "refresh" in page(
        status_of(Board(make(seeds=[7]).cells, tmp_path), "x", 1, "now")
    )


def test_the_command_line_from_validate_to_export(
    tmp_path: Path, raw: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from titer.cli import main

    file, out = tmp_path / "s.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(raw | {"attacks": [BAD, *raw["attacks"]], "include": []}))
    main(["study", "validate", str(file)])
    main(["study", "plan", str(file), "--output_dir", str(out)])
    assert "9 cells: 5 ready, 4 waiting" in capsys.readouterr().out and not out.exists()
    with pytest.raises(SystemExit) as caught:
        main(["study", "run", str(file), "--output_dir", str(out)])
    assert caught.value.code == 1
    text = capsys.readouterr().out
    assert "9 cells: 5 done, 4 failed" in text and text.count("\nfailed ") + text.startswith("failed") == 4
    assert (out / "status.html").is_file()
    main(["study", "status", str(file), "--output_dir", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["states"]["failed"] == 4
    for name in ("cells.csv", "cells.jsonl"):
        main(["study", "export", str(file), "--output_dir", str(out), "--output", str(tmp_path / name)])
    with (tmp_path / "cells.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 9
    capsys.readouterr()
    main(["study", "retry", str(file), "--output_dir", str(out)])
    assert "4 failures" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- processes


def _die_once(flag: str) -> None:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _fall(word: str) -> None:
    raise TiterError(word)


def test_a_crew_replaces_the_killed_and_tells_what_stopped_it(tmp_path: Path) -> None:
    with Processes(_die_once, [str(tmp_path / "flag")]) as crew:
        killed: list[tuple[int, int]] = []
        while crew.working():
            killed += crew.replaced()
            time.sleep(0.05)
    assert [code for _, code in killed] == [-signal.SIGKILL]
    with Processes(_fall, ["one line"]) as crew, pytest.raises(TiterError, match="one line"):
        while crew.working():
            crew.replaced()
            time.sleep(0.05)


def test_the_cell_of_a_killed_worker_is_failed_by_name(tmp_path: Path, make: Make) -> None:
    cells = make().cells
    board = Board(cells, tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(str(tmp_path), board.id(0)))
    process.start()
    process.join()
    assert board.state(0) == "ready"
    assert queue_module._blame(board, process.pid or 0, -9) and not queue_module._blame(board, 1, -9)
    failure = board.failure(0)
    assert failure is not None and "killed by signal 9" in failure["error"]


def _claim_and_die(root: str, run_id: str) -> None:
    Claims(root).claim(run_id)
    os.kill(os.getpid(), signal.SIGKILL)


SCRIPT = """
import json, sys
from titer.runs.queue import run_study
from titer.campaigns.study.file import parse_study
cells = parse_study(json.loads(sys.argv[1])).cells
run_study(cells, sys.argv[2], workers=int(sys.argv[3]), save_seconds=0)
"""


def start(raw: Mapping[str, Any], root: Path, workers: int) -> subprocess.Popen[bytes]:
    """A study in its own process group, to be killed whole."""
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(raw), str(root), str(workers)]
    return subprocess.Popen(arguments, start_new_session=True)


@pytest.mark.slow
def test_two_studies_on_one_folder_share_the_cells(tmp_path: Path, raw: dict[str, Any], make: Make) -> None:
    raw["seeds"] = list(range(8))
    both = [start(raw, tmp_path / "both", workers) for workers in (1, 2)]
    assert [p.wait(300) for p in both] == [0, 0]
    cells = make(seeds=raw["seeds"]).cells
    assert Board(cells, tmp_path / "both").counts()["done"] == len(cells)
    run_study(cells, tmp_path / "one")
    assert files(tmp_path / "both") == files(tmp_path / "one")


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(tmp_path: Path, raw: dict[str, Any], make: Make) -> None:
    cells = make().cells
    run_study(cells, tmp_path / "whole")
    for delay in (0.0, 0.05, 0.2, 0.5):
        process = start(raw, tmp_path / "killed", 1)
        before = len(list((tmp_path / "killed" / "runs").glob("[!.]*")))
        while process.poll() is None and not list((tmp_path / "killed" / "runs").glob(".claims/*")):
            time.sleep(0.01)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(list((tmp_path / "killed" / "runs").glob("[!.]*"))) >= before
    work(Work(cells, str(tmp_path / "killed")))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_cell_is_named_by_what_it_does(make: Make) -> None:
    cell: Cell = make().cells[0]
    assert replace(cell, labels={}).key == cell.key
    assert replace(cell, run=replace(cell.run, seed=9)).key != cell.key
