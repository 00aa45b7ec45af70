import hashlib
import json
import os
import shutil
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from titer.report.bundle import verify_bundle, write_bundle
from titer.schema.errors import TiterError

SECRET = "synthetic secret answer"


@pytest.fixture
def made(tmp_path: Path) -> tuple[list[dict[str, object]], Path, Path]:
    runs = tmp_path / "runs"
    for name in ("aaa", "bbb"):
        (runs / name).mkdir(parents=True)
        (runs / name / "record.json").write_text(json.dumps({"id": name}))
        (runs / name / "curve.jsonl").write_text('{"step": 0}\n')
        row = {"prompt": SECRET, "text": f"{SECRET} \ud800", "target": SECRET, "index": 0, "score": {"value": 1.0}}
        (runs / name / "completions.jsonl").write_text(json.dumps(row) + "\n")
    results: list[dict[str, object]] = [{"model": "synthetic/m", "conditions": {}, "records": ["aaa", "bbb"]}]
    return results, runs, write_bundle(results, runs, tmp_path / "evidence.zip")


def rewrite(path: Path, change: dict[str, bytes | None]) -> None:
    """The archive with members replaced, added (new names) or dropped (None)."""
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()} | change
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            if data is not None:
                new.writestr(name, data)


def test_a_bundle_verifies_and_holds_the_evidence(made) -> None:
    _, _, path = made
    assert verify_bundle(path) == []
    with zipfile.ZipFile(path) as archive:
        assert {"results.json", "environment.txt", "SHA256SUMS", "runs/aaa/curve.jsonl"} <= set(archive.namelist())
        assert "pytest==" in archive.read("environment.txt").decode()


def test_completions_are_redacted_unless_asked_for(made, tmp_path: Path) -> None:
    results, runs, path = made
    with zipfile.ZipFile(path) as archive:
        row = json.loads(archive.read("runs/aaa/completions.jsonl"))
    assert row["prompt"]["characters"] == len(SECRET) and len(row["prompt"]["sha256"]) == 64
    assert row["score"] == {"value": 1.0} and SECRET not in json.dumps(row)
    with zipfile.ZipFile(write_bundle(results, runs, tmp_path / "open.zip", show_completions=True)) as archive:
        assert SECRET in archive.read("runs/aaa/completions.jsonl").decode()


def test_the_same_evidence_gives_the_same_bytes(made, tmp_path: Path) -> None:
    results, runs, path = made
    assert write_bundle(results, runs, tmp_path / "again.zip").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"runs/aaa/curve.jsonl": b"{}"}, "runs/aaa/curve.jsonl: changed since the bundle was made"),
        ({"runs/aaa/curve.jsonl": None}, "runs/aaa/curve.jsonl: missing"),
        ({"runs/aaa/record.json": None}, "runs/aaa/record.json: missing, though synthetic/m rests on it"),
        ({"extra.txt": b"x"}, "extra.txt: not listed in SHA256SUMS"),
        ({"SHA256SUMS": None}, "SHA256SUMS: missing: not made by `titer bundle`"),
    ],
)
def test_tampering_is_found(made, change: dict[str, bytes | None], problem: str) -> None:
    rewrite(made[2], change)
    assert problem in verify_bundle(made[2])


def test_a_missing_run_is_refused(made, tmp_path: Path) -> None:
    results, runs, _ = made
    shutil.rmtree(runs / "bbb")
    with pytest.raises(TiterError, match="bbb: not a finished run"):
        write_bundle(results, runs, tmp_path / "x.zip")
    with pytest.raises(TiterError, match="not a finished run"):
        write_bundle([{"model": "m", "records": ["../runs/aaa"]}], runs, tmp_path / "x.zip")


def test_not_a_bundle_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("no zip")
    for path in (tmp_path / "x.zip", tmp_path / "none.zip"):
        with pytest.raises(TiterError, match="not a bundle"):
            verify_bundle(path)


def test_a_damaged_archive_is_not_good(made) -> None:
    with zipfile.ZipFile(made[2]) as archive:
        largest = max(archive.infolist(), key=lambda info: info.compress_size)
    data = bytearray(made[2].read_bytes())
    data[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 0xFF
    made[2].write_bytes(bytes(data))
    try:
        assert verify_bundle(made[2]) != []
    except TiterError as error:
        assert "not a bundle" in str(error)


def archive_of(path: Path, members: dict[str, bytes], listed: dict[str, bytes] | None = None) -> Path:
    """An archive with a list of checksums of `listed` (default: all members)."""
    rows = members if listed is None else listed
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in rows.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**members, "SHA256SUMS": sums.encode()}.items():
            archive.writestr(name, data)
    return path


SHAPES = [b"", b"null", b"3", b"{}", b"[]", b"[1]", b'["a"]', b"\xff", b"[" * 100_000, b"[{", b'[{"records": 3}]']


@pytest.mark.parametrize("results", SHAPES)
def test_results_of_another_shape_are_a_problem_of_one_line(tmp_path: Path, results: bytes) -> None:
    problems = verify_bundle(archive_of(tmp_path / "b.zip", {"results.json": results}))
    assert len(problems) == 1 and "results.json" in problems[0] and "\n" not in problems[0]


@pytest.mark.parametrize("sums", [b"\xff", b"abc", b"no hash  results.json\n", b"\0" * 100])
def test_checksums_of_another_shape_are_a_problem_of_one_line(made, sums: bytes) -> None:
    rewrite(made[2], {"SHA256SUMS": sums})
    assert verify_bundle(made[2]) == ["SHA256SUMS: not a list of checksums"]


def test_names_cannot_write_to_the_terminal(made) -> None:
    rewrite(made[2], {"a\n\x1b[2Jb": b"x"})
    (problem,) = verify_bundle(made[2])
    assert problem.isprintable() and problem.endswith("not listed in SHA256SUMS")


def test_many_members_take_linear_time(tmp_path: Path) -> None:
    members = {f"f{i}": b"" for i in range(8_000)}
    path = archive_of(tmp_path / "b.zip", {"results.json": b"[{}]", **members}, listed={})
    started = time.process_time()
    assert len(verify_bundle(path)) == 8_001
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["SHA256SUMS", "runs/aaa/completions.jsonl"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_not_read(made, name: str) -> None:
    with zipfile.ZipFile(made[2]) as old:
        members = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(made[2], "w", zipfile.ZIP_DEFLATED) as new:
        for other, data in members.items():
            if other != name:
                new.writestr(other, data)
        with new.open(name, "w") as stream:
            for _ in range(40):
                stream.write(bytes(1 << 20))
    tracemalloc.start()
    problems = verify_bundle(made[2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(problems) == 1 and "times its size" in problems[0] and peak < 4 << 20


def test_results_too_nested_for_memory_are_not_parsed(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "b.zip", {"results.json": b"[" + b"[]," * 3_000_000 + b"{}]"})
    tracemalloc.start()
    assert verify_bundle(path) == ["results.json: not a list of results, or too large a one"]
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("line", [b"{\n", b"3\n", b"\xff\n", b"[" * 100_000])
def test_completions_that_cannot_be_redacted_are_one_line(made, tmp_path: Path, line: bytes) -> None:
    results, runs, _ = made
    (runs / "aaa" / "completions.jsonl").write_bytes(line)
    with pytest.raises(TiterError, match=r"completions.jsonl: line 1: .*do the run again"):
        write_bundle(results, runs, tmp_path / "x.zip")
    assert not list(tmp_path.glob("*x.zip*"))


def test_a_folder_that_cannot_be_written_is_one_line(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, runs, _ = made
    (tmp_path / "file").write_text("")
    with pytest.raises(TiterError, match=r"bundle: .*File exists"):
        write_bundle(results, runs, tmp_path / "file" / "x.zip")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(TiterError, match=r"bundle: .*Read-only file system"):
        write_bundle(results, runs, tmp_path / "x.zip")


def test_a_large_run_is_packed_in_pieces(made, tmp_path: Path) -> None:
    results, runs, _ = made
    row = json.dumps({"prompt": "p" * 1000, "text": "t" * 1000, "target": "", "index": 0}) + "\n"
    (runs / "aaa" / "completions.jsonl").write_text(row * 8_000)
    tracemalloc.start()
    path = write_bundle(results, runs, tmp_path / "x.zip")
    assert verify_bundle(path) == []
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), new=st.binary(max_size=40), cut=st.booleans())
def test_a_changed_archive_is_one_line_or_problems_of_one_line_each(made, at: int, new: bytes, cut: bool) -> None:
    data = made[2].read_bytes()
    at %= len(data)
    changed = made[2].with_name("changed.zip")
    changed.write_bytes(data[:at] + new + (b"" if cut else data[at + len(new) :]))
    try:
        problems = verify_bundle(changed)
    except TiterError as error:
        problems = [str(error)]
    assert all("\n" not in problem for problem in problems)
