"""Run folders: whole or not there, never recomputed, and a full or read-only disk is one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import save_file

from titer.runs import provenance as provenance_module
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS, CURVE, RECORD, read_json, read_lines, write_json, write_lines, write_text
from titer.schema.types import Completion, Point, RunRecord, Score, Spend

RESULT = {"attack": "sft", "config": "sft(lr)", "end": "finished"}
RUN = RunRecord("attack-1", "attack", {"a": 1}, "finished", Spend(steps=2), 7, "2026-01-01", result=RESULT)
POINTS = [Point(s, Spend(steps=s), {"harm": (0.0, None)}) for s in (0, 2)]
SAID = [Completion("harm", 0, 0, "p", "t\u2028", "a", Score(None, None, "exact"))]


def finished(root: Path) -> Store:
    store = Store(root)
    with store.writing(RUN.id) as folder:
        write_lines(folder / CURVE, POINTS)
        write_lines(folder / COMPLETIONS, SAID)
        write_json(folder / RECORD, RUN)
    return store


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    store = finished(tmp_path)
    assert store.record(RUN.id) == RUN
    assert store.completions(RUN.id) == SAID
    curve = store.curve(RUN.id, "undefended", "unseen")
    assert curve.points == tuple(POINTS)
    assert (curve.role, curve.data, curve.seed, curve.end) == ("undefended", "unseen", 7, "finished")
    assert files(tmp_path) == [f"runs/attack-1/{f}" for f in sorted((COMPLETIONS, CURVE, RECORD))]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new and longer")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


def test_a_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")
    seen = []
    real = os.replace

    def look(source: Any, target: Any) -> None:
        seen.append(((tmp_path / "a.txt").read_text(), Path(source).read_text()))
        real(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_text(tmp_path / "a.txt", "new")
    assert seen == [("old", "new")]
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, TiterError])
def test_a_run_that_fails_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Store(tmp_path).writing("r") as folder:
        write_text(folder / CURVE, "half")
        raise error("x")
    assert files(tmp_path) == []
    assert not Store(tmp_path).folder("r").exists()


def test_a_run_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    store = finished(tmp_path)
    with pytest.raises(ValueError, match="x"), store.writing(RUN.id):
        raise ValueError("x")
    assert store.record(RUN.id) == RUN


def test_a_run_takes_the_place_of_the_earlier_one_whole(tmp_path: Path) -> None:
    store = finished(tmp_path)
    with store.writing(RUN.id) as folder:
        write_json(folder / RECORD, RUN)
    assert files(tmp_path) == [f"runs/attack-1/{RECORD}"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id": "x"}', '{"id": 1, "kind": 3}', "\udcff"])
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    store = finished(tmp_path)
    (store.folder(RUN.id) / RECORD).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert store.record(RUN.id) is None
    with pytest.raises(TiterError, match="not a finished run"):
        store.curve(RUN.id)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    store = finished(tmp_path)
    path = store.folder(RUN.id) / CURVE
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(TiterError, match=f"{CURVE}: line 3: damaged"):
        store.curve(RUN.id)


@pytest.mark.parametrize("damage", ['{"step": 1}\n', None])
def test_a_curve_that_is_missing_or_of_another_shape_is_one_line(tmp_path: Path, damage: str | None) -> None:
    store = finished(tmp_path)
    path = store.folder(RUN.id) / CURVE
    path.write_text(damage) if damage else path.unlink()
    with pytest.raises(TiterError, match=CURVE) as caught:
        store.curve(RUN.id)
    assert "\n" not in str(caught.value)


def test_reading_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(TiterError, match="no such file"):
        read_lines(tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(TiterError, match="damaged"):
        read_json(tmp_path / "b.json")


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Path, "open", failing(number))
    with pytest.raises(TiterError, match=f"a.txt: cannot be written: {os.strerror(number)}: .*choose another folder"):
        write_text(tmp_path / "a.txt", "x")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", failing(number))
    with pytest.raises(TiterError, match=f"cannot be written: {os.strerror(number)}"), Store(tmp_path).writing("r"):
        raise AssertionError("the run must not start")
    assert files(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(TiterError, match=r"a.txt: cannot be written: No space left on device: free space"):
        write_text(tmp_path / "a.txt", "x")
    with (
        pytest.raises(TiterError, match="cannot be written: No space left on device"),
        Store(tmp_path).writing("r") as folder,
    ):
        (folder / "model").write_text("half")
        failing(errno.ENOSPC)()
    assert files(tmp_path) == []


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)])
def test_what_is_written_has_the_permissions_that_umask_allows(
    tmp_path: Path, umask: int, folder: int, file: int
) -> None:
    before = os.umask(umask)
    try:
        with Store(tmp_path).writing("r") as scratch:
            write_text(scratch / "a.txt", "x")
    finally:
        os.umask(before)
    run = tmp_path / "runs" / "r"
    assert stat.S_IMODE(run.stat().st_mode) == folder and stat.S_IMODE((run / "a.txt").stat().st_mode) == file


def test_a_full_tmp_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, make, failing(errno.ENOSPC))
    with Store(tmp_path).writing("r") as folder:
        write_text(folder / "a.txt", "x")
    assert (tmp_path / "runs" / "r" / "a.txt").read_text() == "x"


def test_an_error_inside_a_run_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the model's own trouble"), Store(tmp_path).writing("r"):
        raise OSError("the model's own trouble")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(TiterError, match="cannot be written"), Store(tmp_path / "out").writing("r"):
        raise AssertionError("the run must not start")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_environment_says_what_ran() -> None:
    found = provenance_module.environment()
    assert {"python", "platform", "cpu_count", "packages", "git"} <= set(found)
    assert "torch" in found["packages"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_private_files_of_libraries_get_the_permissions_that_umask_allows(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Store(tmp_path).writing("r") as scratch:
            (scratch / "model").mkdir()
            (scratch / "model" / "model.safetensors").write_bytes(b"x")
            (scratch / "model" / "model.safetensors").chmod(0o600)  # as safetensors writes
    finally:
        os.umask(before)
    weights = tmp_path / "runs" / "r" / "model" / "model.safetensors"
    assert stat.S_IMODE(weights.stat().st_mode) == 0o666 & ~umask


def immunized(root: Path, shards: int = 1) -> Path:
    """A finished immunization; the folder of its model."""
    with Store(root).writing("r") as folder:
        (folder / "model").mkdir()
        names = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
        for name in names:
            save_file({"w": np.ones(3, dtype=np.float32)}, str(folder / "model" / name))
        if shards > 1:
            index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
            write_json(folder / "model" / "model.safetensors.index.json", index)
        write_json(folder / "model" / "config.json", {"model_type": "llama"})
        write_json(folder / RECORD, replace(RUN, id="r", kind="immunize"))
    assert Store(root).record("r") is not None
    return root / "runs" / "r" / "model"


def header(text: str, body: bytes = b"") -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + body


MODELS: dict[str, Any] = {
    "no folder": shutil.rmtree,
    "no config": lambda m: (m / "config.json").unlink(),
    "an empty config": lambda m: (m / "config.json").write_text(""),
    "a config of another shape": lambda m: (m / "config.json").write_text("[1]"),
    "no weights": lambda m: (m / "model.safetensors").unlink(),
    "empty weights": lambda m: (m / "model.safetensors").write_bytes(b""),
    "cut weights": lambda m: os.truncate(m / "model.safetensors", (m / "model.safetensors").stat().st_size - 1),
    "weights that are a folder": lambda m: ((m / "model.safetensors").unlink(), (m / "model.safetensors").mkdir()),
}
HEADERS = [
    b"\0" * 8, b"\xff" * 8, b"\xff" * 100, header("[]"), header("3"), header("null"), header("{}"), header('{"w": 3}'),
    header('{"w": {}}'), header('{"w": {"data_offsets": "ab"}}'), header('{"w": {"data_offsets": [0, 12]}}', b"x" * 9),
    header('{"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, "12"]}}', b"x" * 12), header("[" * 50_000),
    header('{"w": {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]}}', b"x" * 12), header("\xff{}"),
    header('{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}', b"x" * 12),
]  # fmt: skip


@pytest.mark.parametrize("damage", MODELS)
def test_an_immunization_without_its_whole_model_is_not_done_and_heals(tmp_path: Path, damage: str) -> None:
    MODELS[damage](immunized(tmp_path))
    assert Store(tmp_path).record("r") is None
    immunized(tmp_path)


@pytest.mark.parametrize("text", HEADERS)
def test_garbled_weights_are_not_whole(tmp_path: Path, text: bytes) -> None:
    (immunized(tmp_path) / "model.safetensors").write_bytes(text)
    assert Store(tmp_path).record("r") is None


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_a_model_in_parts_needs_all_of_them(tmp_path: Path, index: str) -> None:
    model = immunized(tmp_path, shards=2)
    (model / "model-1.safetensors").rename(model / "elsewhere")
    assert Store(tmp_path).record("r") is None
    (model / "elsewhere").rename(model / "model-1.safetensors")
    assert Store(tmp_path).record("r") is not None
    (model / "model.safetensors.index.json").write_text(index)
    assert Store(tmp_path).record("r") is None


CURVES = [b"", b"\n\n", b"\xff\xfe", b"{", b"[]\n", b"3\n", b'{"step": "x"}\n', b"[" * 100_000, b"null\n"]


@pytest.mark.parametrize("text", CURVES)
def test_an_attack_without_a_sound_curve_is_not_done(tmp_path: Path, text: bytes) -> None:
    store = finished(tmp_path)
    assert store.record(RUN.id) == RUN
    (store.folder(RUN.id) / CURVE).write_bytes(text)
    assert store.record(RUN.id) is None
    with pytest.raises(TiterError, match=CURVE) as caught:
        store.curve(RUN.id)
    assert "\n" not in str(caught.value)
    finished(tmp_path)
    assert store.record(RUN.id) == RUN


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text('{"probe": "ha')])
def test_an_attack_without_its_whole_completions_is_not_done(tmp_path: Path, damage: Any) -> None:
    store = finished(tmp_path)
    damage(store.folder(RUN.id) / COMPLETIONS)
    assert store.record(RUN.id) is None


@pytest.mark.parametrize("more", [{}, {"unheard": [1]}])
def test_a_record_of_a_newer_schema_is_refused_and_not_replaced(tmp_path: Path, more: dict[str, Any]) -> None:
    store = finished(tmp_path)
    path = store.folder(RUN.id) / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2, **more}))
    with pytest.raises(TiterError, match=r"schema 2, of a newer titer: update titer"):
        store.record(RUN.id)
    with pytest.raises(TiterError, match=r"schema 2, of a newer titer"), store.writing(RUN.id):
        raise AssertionError("the run must not start")
    assert json.loads(path.read_text())["schema"] == 2 and files(tmp_path / "runs" / RUN.id)


@pytest.mark.parametrize("schema", [0, -1, "1", None, 1.5, True, [1]])
def test_a_record_of_no_schema_is_damaged(tmp_path: Path, schema: Any) -> None:
    store = finished(tmp_path)
    path = store.folder(RUN.id) / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    assert store.record(RUN.id) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_run_that_may_not_be_read_is_one_line_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = finished(tmp_path)
    immunized(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", failing(number))
    with pytest.raises(TiterError, match=f"cannot be read: {os.strerror(number)}"):
        store.record(RUN.id)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "open", failing(number))
    for run_id in (RUN.id, "r"):
        with pytest.raises(TiterError, match=f"cannot be read: {os.strerror(number)}"):
            store.record(run_id)


def test_what_safetensors_says_of_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="cannot be written: No space left on device"), Store(tmp_path).writing("r"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert files(tmp_path) == []


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_any_file_of_a_run_is_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, overwritten, of another shape, schema or encoding: not done, or one line, and it can be done again."""
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    store = finished(root)
    immunized(root)
    run_id = data.draw(st.sampled_from([RUN.id, "r"]))
    path = data.draw(st.sampled_from(sorted(p for p in store.folder(run_id).rglob("*") if p.is_file())))
    text, at = path.read_bytes(), data.draw(st.integers(0, 2000))
    shape = json.dumps(data.draw(NESTED | st.dictionaries(st.sampled_from(["id", "step", "schema", "w"]), NESTED)))
    new = data.draw(
        st.sampled_from([text[: at % len(text)], shape.encode(), shape.encode("utf-16"), b"\xff", text * 2])
    )
    path.write_bytes(new)
    for read in (store.record, store.finished, store.curve, store.completions):
        try:
            read(run_id)
        except TiterError as error:
            assert "\n" not in str(error)
