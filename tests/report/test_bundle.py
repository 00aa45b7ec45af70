import json
import shutil
import zipfile
from pathlib import Path

import pytest

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
    data = bytearray(made[2].read_bytes())
    data[len(data) // 3] ^= 0xFF
    made[2].write_bytes(bytes(data))
    try:
        assert verify_bundle(made[2]) != []
    except TiterError as error:
        assert "not a bundle" in str(error)
