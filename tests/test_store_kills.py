"""Whatever moment a process is killed or frozen at: finished runs stay, models are whole, the next one goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from killing import every_kill, every_stop
from titer.data.roles import assign
from titer.runs import locks as claims_module
from titer.runs.locks import Claims
from titer.runs.provenance import publish
from titer.runs.publishing import PROVENANCE, STAGED, finish
from titer.runs.store import Store, sound_model
from titer.runs.verbs import _refuse_other
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.files import RECORD, write_json, write_lines, write_text
from titer.schema.types import RunRecord, Spend

PLAN = assign(Data("organism"))


def record(run_id: str, **changes: Any) -> RunRecord:
    return replace(RunRecord(run_id, "immunize", {}, "finished", Spend(), 0, "2026-01-01"), **changes)


def make_model(folder: Path, value: float, shards: int = 1) -> None:
    """A model folder in every file of which `value` can be seen."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        save_file({f"w{i}": np.full(4, value, dtype=np.float32)}, str(folder / name))
    if shards > 1:
        index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
        write_text(folder / "model.safetensors.index.json", json.dumps(index))
    write_text(folder / "config.json", json.dumps({"value": value}))
    write_text(folder / "tokenizer.json", json.dumps({"value": value}))


def do_run(root: Path, run_id: str, value: float, shards: int = 1, claims: Claims | None = None) -> None:
    """What a worker does: claim, sweep, write, publish; a run that is there is left alone."""
    with (claims or Claims(root)).waiting(run_id):
        store = Store(root)
        store.sweep(run_id)
        if store.record(run_id) is None:
            with store.writing(run_id) as folder:
                make_model(folder / "model", value, shards)
                write_lines(folder / "log.jsonl", [{"value": value}])
                write_json(folder / RECORD, record(run_id, result={"value": value}))


def hidden(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob(".*") if p.name != ".claims")


def test_a_run_killed_at_any_point_is_done_by_the_next_start(tmp_path: Path) -> None:
    root, store, killed = tmp_path / "o", Store(tmp_path / "o"), 0
    for _ in every_kill(lambda: do_run(root, "r", 1.0)):
        killed += 1
        found = store.record("r")
        assert found is None or sound_model(store.folder("r") / "model")
        do_run(root, "r", 1.0)
        assert store.record("r") is not None and hidden(root) == []
        shutil.rmtree(root)
    assert killed > 15


@pytest.mark.slow
def test_a_run_redone_over_a_damaged_one_can_be_killed_at_any_point(tmp_path: Path) -> None:
    store, killed = Store(tmp_path), 0
    weights = store.folder("r") / "model" / "model.safetensors"
    do_run(tmp_path, "r", 1.0)
    weights.write_bytes(b"half")
    for _ in every_kill(lambda: do_run(tmp_path, "r", 1.0)):
        killed += 1
        do_run(tmp_path, "r", 1.0)
        assert store.record("r") is not None and hidden(tmp_path) == []
        weights.write_bytes(b"half")
    assert killed > 15


def replaced(root: Path, value: float) -> None:
    """A run done again over a sound one, as with --overwrite."""
    with Claims(root).waiting("r"):
        Store(root).sweep("r")
        with Store(root).writing("r") as folder:
            make_model(folder / "model", value)
            write_json(folder / RECORD, record("r", result={"value": value}))


def test_a_sound_run_that_is_replaced_is_the_old_or_the_new_whole_after_any_kill(tmp_path: Path) -> None:
    do_run(tmp_path, "r", 1.0)
    seen = set()
    for _ in every_kill(lambda: replaced(tmp_path, 2.0)):
        with Claims(tmp_path).waiting("r"):
            Store(tmp_path).sweep("r")
        found = Store(tmp_path).finished("r").result["value"]
        config = json.loads((tmp_path / "runs" / "r" / "model" / "config.json").read_text())
        assert config["value"] == found
        seen.add(found)
        replaced(tmp_path, 1.0)
    assert seen == {1.0, 2.0} and hidden(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ late writers


WORKS, DONE, AGAIN = "while the other works", "when the other is done", "when a third has claimed the run"


@pytest.mark.parametrize("wakes", [DONE, *(pytest.param(w, marks=pytest.mark.slow) for w in (WORKS, AGAIN))])
def test_a_writer_frozen_beyond_the_dead_after_time_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wakes: str
) -> None:
    """Frozen at each of its file operations in turn; another, elsewhere, takes the run over; then it wakes up."""
    late, store, claims = 0, Store(tmp_path), Claims(tmp_path, dead_after=0.0)
    monkeypatch.setattr(claims_module, "_host", lambda: "elsewhere")
    for wake in every_stop(lambda: at_home(tmp_path)):
        wake = cache(wake)
        if claims.folder.is_dir() and list(claims.folder.glob("r.*")):
            claim = claims.claim("r")
            assert claim is not None
            store.sweep("r")
            if store.record("r") is None:
                late += 1
                with store.writing("r") as folder:
                    make_model(folder / "model", 2.0)
                    _ = wake() if wakes == WORKS else None
                    write_json(folder / RECORD, record("r", result={"value": 2.0}))
            found = store.finished("r")
            claims.release(claim)
            third = claims.claim("r") if wakes == AGAIN and found.result["value"] == 2.0 else None
            wake()
            assert store.finished("r") == found and (third is None or third.exists())
            assert not hidden(tmp_path)
        wake()
        shutil.rmtree(tmp_path / "runs")
    assert late > 10


def at_home(root: Path) -> None:
    claims_module._host = lambda: "home"  # type: ignore[assignment]  # in a fork
    do_run(root, "r", 1.0)


# ------------------------------------------------------------------------------------------------- a published model


def immunized(root: Path, run_id: str, value: float, shards: int = 1) -> tuple[Path, RunRecord]:
    do_run(root, run_id, value, shards)
    return root / "runs" / run_id / "model", Store(root).finished(run_id)


def state(out: Path) -> tuple[float | None, float | None]:
    """What a loader sees: the value of every file of the model, and that of the record beside it; None for none."""
    path = out / PROVENANCE
    told = json.loads(path.read_text())["record"]["result"]["value"] if path.exists() else None
    if not (out / "config.json").exists():
        return None, told
    assert sound_model(out)
    values = {json.loads((out / n).read_text())["value"] for n in ("config.json", "tokenizer.json")}
    values |= {float(v[0]) for f in out.glob("*.safetensors") for v in load_file(str(f)).values()}
    assert len(values) == 1, "a mixture of two models"
    return values.pop(), told


@pytest.mark.slow
def test_a_first_publish_killed_at_any_point_is_finished_by_the_same_command(tmp_path: Path) -> None:
    folder, made = immunized(tmp_path, "r", 1.0)
    killed = 0
    for _ in every_kill(lambda: publish(folder, tmp_path, made, PLAN)):
        killed += 1
        assert state(tmp_path) in ((None, None), (None, 1.0), (1.0, 1.0))
        _refuse_other(tmp_path, "r", False)
        publish(folder, tmp_path, made, PLAN)
        assert state(tmp_path) == (1.0, 1.0) and not hidden(tmp_path)
        for file in (p for p in tmp_path.iterdir() if p.is_file()):
            file.unlink()
    assert killed > 20


@pytest.mark.parametrize("shards", [(1, 2), pytest.param((2, 1), marks=pytest.mark.slow)])
def test_a_model_that_replaces_another_never_stands_beside_its_record(tmp_path: Path, shards: tuple[int, int]) -> None:
    old, new = immunized(tmp_path, "a", 1.0, shards[0]), immunized(tmp_path, "b", 2.0, shards[1])
    (tmp_path / "mine.txt").write_text("kept")
    publish(old[0], tmp_path, old[1], PLAN)
    seen = set()
    for _ in every_kill(lambda: publish(new[0], tmp_path, new[1], PLAN)):
        seen.add(state(tmp_path))
        finish(tmp_path)
        assert state(tmp_path) in ((1.0, 1.0), (2.0, 2.0)) and not (tmp_path / STAGED).exists()
        _refuse_other(tmp_path, "b", True)
        publish(new[0], tmp_path, new[1], PLAN)
        assert state(tmp_path) == (2.0, 2.0) and (tmp_path / "mine.txt").exists() and not hidden(tmp_path)
        publish(old[0], tmp_path, old[1], PLAN)
    assert seen == {(1.0, 1.0), (None, 1.0), (None, None), (None, 2.0), (2.0, 2.0)}


def test_a_folder_of_another_model_is_refused_and_one_half_published_is_finished_first(tmp_path: Path) -> None:
    (folder, made), (other, its) = immunized(tmp_path, "a", 1.0), immunized(tmp_path, "b", 2.0)
    publish(folder, tmp_path, made, PLAN)
    with pytest.raises(TiterError, match="holds another model"):
        _refuse_other(tmp_path, "b", False)
    for text in ("[]", "null", '{"record": 3}', "{}"):
        (tmp_path / PROVENANCE).write_text(text)
        with pytest.raises(TiterError, match="holds another model"):
            _refuse_other(tmp_path, "a", False)
    publish(other, tmp_path, its, PLAN)
    assert state(tmp_path) == (2.0, 2.0)
    _refuse_other(tmp_path, "b", False)


def test_what_is_published_already_is_left_alone_and_what_is_damaged_is_not(tmp_path: Path) -> None:
    folder, made = immunized(tmp_path, "r", 1.0)
    publish(folder, tmp_path, made, PLAN)
    before = (tmp_path / "config.json").stat().st_ctime_ns
    publish(folder, tmp_path, made, PLAN)
    assert (tmp_path / "config.json").stat().st_ctime_ns == before
    (tmp_path / "tokenizer.json").unlink()
    publish(folder, tmp_path, made, PLAN)
    assert state(tmp_path) == (1.0, 1.0)


def test_a_disk_without_links_gets_copies_and_a_full_one_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = immunized(tmp_path, "r", 1.0)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", fail)
    publish(folder, tmp_path, made, PLAN)
    assert state(tmp_path) == (1.0, 1.0)
    other, its = immunized(tmp_path, "b", 2.0)
    monkeypatch.setattr(shutil, "copy2", fail)
    with pytest.raises(TiterError, match=r"cannot be written: No space left on device: free space"):
        publish(other, tmp_path, its, PLAN)
    assert state(tmp_path) == (1.0, 1.0) and not hidden(tmp_path)
