"""Run folders: a record written last makes a run finished."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.runs.locks import Claims
from titer.schema.errors import DiskTrouble, TiterError
from titer.schema.files import (
    ABSENT,
    COMPLETIONS,
    CURVE,
    DAMAGE,
    RECORD,
    disk_says,
    read_records,
    scratch_beside,
    unreadable,
)
from titer.schema.types import Completion, Curve, Point, Role, RunRecord, Spend, from_json

MODEL = "model"  # where a defended model lies in its run folder
SCHEMA = 1  # of records
ASIDE, GONE = ".old", ".gone"  # endings of scratch names: a run that is being replaced, what is being removed


class Store:
    """The runs under one folder: `ROOT/runs/<id>/record.json` and what stands beside it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, run_id: str) -> Path:
        """Where a run is kept, whether or not it exists yet."""
        return self.root / "runs" / run_id

    def record(self, run_id: str) -> RunRecord | None:
        """The record of a finished run, or None: one that is damaged, or that has lost what belongs to it, is not.

        Raises `TiterError` for a record of a newer schema and for files that may not be read: whoever did that run
        again would replace what is sound.
        """
        record = self._told(run_id)
        return record if record is not None and _complete(self.folder(run_id), record.kind) else None

    def _told(self, run_id: str) -> RunRecord | None:
        """What a run's record says, whatever became of the files beside it."""
        path = self.folder(run_id) / RECORD
        text = _bytes_of(path)
        if text is None:
            return None
        try:
            found = json.loads(text)
            schema = found["schema"] if isinstance(found, dict) and "schema" in found else SCHEMA
            if type(schema) is int and schema > SCHEMA:
                raise TiterError(f"{path}: schema {schema}, of a newer titer: update titer, or choose another folder")
            return from_json(RunRecord, found) if type(schema) is int and schema == SCHEMA else None
        except DAMAGE:
            return None

    def finished(self, run_id: str) -> RunRecord:
        """The record of a run known to be finished; `TiterError` when it has been lost since."""
        record = self.record(run_id)
        if record is None:
            raise TiterError(f"{self.folder(run_id)}: no finished run: do it again")
        return record

    def curve(self, run_id: str, role: Role = "model", data: str = "none") -> Curve:
        """The stored curve of a finished attack run, under the labels that conditions group by."""
        record, path = self._told(run_id), self.folder(run_id) / CURVE
        if record is None:
            raise TiterError(f"{self.folder(run_id)}: not a finished run: run it again")
        points = tuple(read_records(Point, path))
        lost = [key for key in ("attack", "config", "end") if key not in record.result]
        if lost or not points:
            what = f"the record says no {lost[0]}" if lost else f"{CURVE} holds no points"
            raise TiterError(f"{self.folder(run_id)}: {what}: remove the run folder and run again")
        attack, config, end = (str(record.result[k]) for k in ("attack", "config", "end"))
        return Curve(run_id, role, attack, config, data, record.seed, points, end)

    def completions(self, run_id: str) -> list[Completion]:
        """The stored completions of an attack run."""
        return read_records(Completion, self.folder(run_id) / COMPLETIONS)

    @contextmanager
    def writing(self, run_id: str) -> Iterator[Path]:
        """A scratch folder that becomes the run's folder when the block ends well, and vanishes when it does not.

        It also vanishes when the run was taken over, or finished by another, since the block began. Files get the
        permissions that umask allows.
        """
        final = self.folder(run_id)
        self._told(run_id)  # refuses what a newer titer made
        fence, before = Claims(self.root).fence(run_id), _inode(final)
        scratch = _new_folder(final)
        own = _inode(scratch)
        try:
            yield scratch
            settle(scratch)
            if fence.holds() and _inode(scratch) == own:
                _take_place(scratch, final, before)
        except Exception as error:
            trouble = disk_says(error)
            if not trouble:  # not the disk's: libraries raise bare OSErrors for their own troubles
                raise
            raise DiskTrouble(f"{final}: cannot be written: {trouble}: free space or choose another folder") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def sweep(self, run_id: str) -> None:
        """Remove what killed processes left of a run; only for who holds its claim.

        What is half written is renamed before it is removed: a process that was thought dead and publishes at this
        moment publishes all or nothing.
        """
        final = self.folder(run_id)
        for left in final.parent.glob(f".{run_id}.*"):
            if left.name.endswith(ASIDE) and (left / RECORD).is_file() and not final.exists():
                with suppress(OSError):
                    os.rename(left, final)  # killed between the two renames that replace a run
                continue
            discard(left)


def _new_folder(final: Path) -> Path:
    """A scratch folder beside `final`."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_beside(final)
        scratch.mkdir()
    except OSError as error:
        raise DiskTrouble(f"{final.parent}: cannot be written: {error.strerror}: choose another folder") from None
    return scratch


def discard(path: Path) -> None:
    """Remove a file or folder, out of the reach of whoever knows its name first."""
    gone = path if path.name.endswith(GONE) else path.with_name(f"{path.name}{GONE}")
    with suppress(OSError):
        os.rename(path, gone)
    with suppress(OSError):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)


def _take_place(scratch: Path, final: Path, before: int | None) -> None:
    """Rename `scratch` to `final`, in place of the folder `before` (its inode) if any; of no other: that is newer."""
    aside = scratch.with_name(f"{scratch.name}{ASIDE}")
    if before is not None:
        with suppress(FileNotFoundError):
            os.rename(final, aside)  # away whole: removed in place and interrupted, it could keep its record only
    try:
        if _inode(aside) in (None, before):
            os.rename(scratch, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another has finished it
            raise
    finally:
        if not final.exists() and aside.exists():
            os.rename(aside, final)
        shutil.rmtree(aside, ignore_errors=True)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def settle(folder: Path) -> None:
    """Have the disk hold every file of a folder before the folder is given its name, with the umask's permissions.

    Libraries may write through private temporary files (safetensors: 0600), which would hide a finished run from
    whoever shares the folder.
    """
    allowed = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in (p for p in folder.rglob("*") if p.is_file()):
        if stat.S_IMODE(path.stat().st_mode) != allowed:
            path.chmod(allowed)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _complete(folder: Path, kind: str) -> bool:
    """Whether what a record of a kind stands for is there and can be read."""
    if not all(map(whole, folder.glob("*/*.safetensors"))):
        return False
    if kind == "immunize":
        return sound_model(folder / MODEL)
    return kind != "attack" or (_has_points(folder / CURVE) and _ends(folder / COMPLETIONS))


def sound_model(folder: Path) -> bool:
    """Whether a folder holds a configuration and all the weights that it says it has, each file whole."""
    index = folder / "model.safetensors.index.json"
    if _object(folder / "config.json") is None:
        return False
    if not index.is_file():
        return whole(folder / "model.safetensors")
    parts = (_object(index) or {}).get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) else set()
    return bool(names) and all(isinstance(name, str) and whole(folder / name) for name in names)


def whole(weights: Path) -> bool:
    """Whether a safetensors file has a sound header and the length that says; `TiterError` if it may not be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with weights.open("rb") as stream:
            if not stream.read(1):
                return False
        with safe_open(str(weights), framework="numpy") as tensors:
            return len(list(tensors.keys())) > 0
    except ABSENT:
        return False
    except OSError as error:
        raise unreadable(weights, error) from None
    except (SafetensorError, *DAMAGE):
        return False


def _has_points(curve: Path) -> bool:
    text = _bytes_of(curve)
    try:
        lines = (text or b"").decode("utf-8").split("\n")
        return len([from_json(Point, json.loads(line)) for line in lines if line.strip()]) > 0
    except DAMAGE:
        return False


def _ends(lines: Path) -> bool:
    """Whether a file of lines is there and was not cut off."""
    try:
        with lines.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - 1, 0))
            return stream.read() in (b"", b"\n")
    except ABSENT:
        return False
    except OSError as error:
        raise unreadable(lines, error) from None


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is none."""
    text = _bytes_of(path)
    try:
        found = json.loads(text) if text is not None else None
    except DAMAGE:
        return None
    return found if isinstance(found, dict) else None


def _bytes_of(path: Path) -> bytes | None:
    """A file's content; None when there is no such file, `TiterError` when it is there and may not be read."""
    try:
        return path.read_bytes()
    except ABSENT:
        return None
    except OSError as error:
        raise unreadable(path, error) from None


Progress = Callable[[int], None]


@dataclass(frozen=True)
class Finished:
    """What a run leaves for its record."""

    spend: Spend
    result: Mapping[str, Any]
