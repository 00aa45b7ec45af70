"""Run folders: atomic writes, records written last, and nothing recomputed that is already there."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from titer.errors import TiterError
from titer.types import Completion, Curve, Point, Role, RunRecord, from_json, to_json

T = TypeVar("T")
RECORD, CURVE, COMPLETIONS = "record.json", "curve.jsonl", "completions.jsonl"
PACKAGES = ("titer", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy", "tokenizers")


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = scratch_beside(path)
        try:
            with temporary.open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TiterError(f"{path}: cannot be written: {error.strerror}: free space or choose another folder") from None


def scratch_beside(path: Path) -> Path:
    """A hidden name beside `path` that nothing has yet; what is made there gets the permissions that umask allows."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written atomically."""
    write_text(path, json.dumps(to_json(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """JSON of a file; `TiterError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TiterError(f"{path}: no such file: check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TiterError(f"{path}: damaged ({error}): remove it and run again") from None


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Rows as JSONL, written atomically."""
    write_text(path, "".join(json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in rows))


def read_lines(path: Path) -> list[Any]:
    """Rows of a JSONL file; `TiterError` when it is missing, and naming the line that is damaged."""
    return _parsed(path, json.loads)


def _read_as(cls: type[T], path: Path) -> list[T]:
    return _parsed(path, lambda line: from_json(cls, json.loads(line)))


def _parsed(path: Path, parse: Callable[[str], T]) -> list[T]:
    if not path.is_file():
        raise TiterError(f"{path}: no such file: remove the run folder and run again")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            try:
                rows.append(parse(line))
            except ValueError:
                raise TiterError(f"{path}: line {number}: damaged: remove the run folder and run again") from None
    return rows


class Store:
    """The runs under one folder: `ROOT/runs/<id>/record.json` and what stands beside it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, run_id: str) -> Path:
        """Where a run is kept, whether or not it exists yet."""
        return self.root / "runs" / run_id

    def record(self, run_id: str) -> RunRecord | None:
        """The record of a finished run, or None; a damaged record or damaged weights count as not finished."""
        path = self.folder(run_id) / RECORD
        if not path.is_file():
            return None
        try:
            record = from_json(RunRecord, read_json(path))
        except (TiterError, ValueError):
            return None
        return record if all(map(whole, self.folder(run_id).glob("*/*.safetensors"))) else None

    def finished(self, run_id: str) -> RunRecord:
        """The record of a run known to be finished; `TiterError` when it has been lost since."""
        record = self.record(run_id)
        if record is None:
            raise TiterError(f"{self.folder(run_id)}: no finished run: do it again")
        return record

    def curve(self, run_id: str, role: Role = "model", data: str = "none") -> Curve:
        """The stored curve of a finished attack run, under the labels that conditions group by."""
        record = self.record(run_id)
        if record is None:
            raise TiterError(f"{self.folder(run_id)}: not a finished run: run it again")
        points = tuple(_read_as(Point, self.folder(run_id) / CURVE))
        attack, config, end = (str(record.result[k]) for k in ("attack", "config", "end"))
        return Curve(run_id, role, attack, config, data, record.seed, points, end)

    def completions(self, run_id: str) -> list[Completion]:
        """The stored completions of an attack run."""
        return _read_as(Completion, self.folder(run_id) / COMPLETIONS)

    @contextmanager
    def writing(self, run_id: str) -> Iterator[Path]:
        """A scratch folder that becomes the run's folder when the block ends well, and vanishes when it does not."""
        final = self.folder(run_id)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratch_beside(final)
            scratch.mkdir()
            aside = scratch.with_name(f"{scratch.name}.old")
        except OSError as error:
            raise TiterError(f"{final.parent}: cannot be written: {error.strerror}: choose another folder") from None
        try:
            yield scratch
            _flush(scratch)
            if final.exists():  # moved away whole: removed in place and interrupted, it could keep its record only
                os.replace(final, aside)
            os.replace(scratch, final)
        except OSError as error:
            if error.errno is None:  # not the disk's: libraries raise bare OSErrors for their own troubles
                raise
            raise TiterError(f"{final}: cannot be written: {error.strerror}: free space or choose another") from None
        finally:
            for left in (scratch, aside):
                shutil.rmtree(left, ignore_errors=True)

    def sweep(self, run_id: str) -> None:
        """Remove what killed processes left of a run; only for who holds its claim."""
        for left in self.folder(run_id).parent.glob(f".{run_id}.*"):
            shutil.rmtree(left, ignore_errors=True)


def whole(weights: Path) -> bool:
    """Whether a safetensors file is as long as its header says: a write that was cut off is not."""
    try:
        with weights.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if 0 < size < weights.stat().st_size else {}
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        return bool(ends) and weights.stat().st_size == 8 + size + max(ends)
    except (OSError, ValueError, KeyError):
        return False


def _flush(folder: Path) -> None:
    """Have the disk hold every file of a folder before the folder is given its name."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def now() -> str:
    """The time in ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def environment() -> Mapping[str, Any]:
    """Versions, code revision and hardware of this process, for records and bug reports."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": _git_revision(),
        "argv0": Path(sys.argv[0]).name,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the source tree titer runs from (`+changes` when not clean); None for an installed copy."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
