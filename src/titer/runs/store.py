"""Run folders: a record written last makes a run finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.schema.errors import TiterError
from titer.schema.files import read_json, read_records, scratch_beside
from titer.schema.types import Completion, Curve, Point, Role, RunRecord, Spend, from_json

RECORD, CURVE, COMPLETIONS = "record.json", "curve.jsonl", "completions.jsonl"


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
        points = tuple(read_records(Point, self.folder(run_id) / CURVE))
        attack, config, end = (str(record.result[k]) for k in ("attack", "config", "end"))
        return Curve(run_id, role, attack, config, data, record.seed, points, end)

    def completions(self, run_id: str) -> list[Completion]:
        """The stored completions of an attack run."""
        return read_records(Completion, self.folder(run_id) / COMPLETIONS)

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


MODEL = "model"  # folder of a defended model inside its run folder


Progress = Callable[[int], None]


@dataclass(frozen=True)
class Finished:
    """What a run leaves for its record."""

    spend: Spend
    result: Mapping[str, Any]
