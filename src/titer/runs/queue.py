"""Ready, running, failed: where runs stand, read from their folder."""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from titer.runs.execute import SAVE_SECONDS
from titer.runs.executors import EXECUTORS, Crew
from titer.runs.inputs import identify
from titer.runs.locks import DEAD_AFTER, Claims, me
from titer.runs.processes import execute
from titer.runs.provenance import now
from titer.runs.store import MODEL, Store, discard
from titer.schema.errors import DiskTrouble, TiterError
from titer.schema.files import read_json, write_json
from titer.schema.specs import Cell, Run
from titer.schema.types import RunRecord

State = Literal["done", "failed", "blocked", "running", "ready", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "ready", "waiting", "blocked", "failed")
ENDED: tuple[State, ...] = ("done", "failed", "blocked")
STRAY = 5  # losses per worker with no cell in hand before the study gives up
POLL = 0.25  # seconds between looks at the folder when there is nothing to do
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Failure:
    """Why a cell failed, as kept in `runs/.failed/<id>.json` until it is retried."""

    id: str
    error: str
    traceback: str
    labels: Mapping[str, str | int]
    host: str
    created: str


@dataclass
class Board:
    """Where the cells of a study stand in a folder. Only what can still change is looked at again."""

    cells: Sequence[Cell]
    root: Path
    dead_after: float = DEAD_AFTER
    seconds: dict[int, float] = field(default_factory=dict)
    _done: dict[int, RunRecord] = field(default_factory=dict)
    _ids: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store(self.root)
        self.claims = Claims(self.root, self.dead_after)

    def states(self) -> list[State]:
        """The state of every cell, in order: `waiting` for its model, `blocked` by the failure of what makes it."""
        return [self.state(i) for i in range(len(self.cells))]

    def state(self, i: int) -> State:
        """The state of cell number `i`."""
        if i in self._done:
            return "done"
        run_id = self.id(i)
        if run_id is None:
            return "blocked" if self.failure_path(self.cells[i].needs).is_file() else "waiting"
        record = self.store.record(run_id)
        if record is not None:
            self._done[i] = record
            self.seconds[i] = float(record.environment.get("wall_seconds", 0.0))
            return "done"
        if self.failure_path(run_id).is_file():
            return "failed"
        return "running" if self.claims.owner(run_id) else "ready"

    def id(self, i: int) -> str | None:
        """The content address of a cell's run; None while the model it attacks is not made."""
        if i not in self._ids:
            run = self.run(i)
            if run is not None:
                self._ids[i] = identify(run)
        return self._ids.get(i)

    def run(self, i: int) -> Run | None:
        """The run of a cell with its model found; None while that is not made."""
        cell = self.cells[i]
        if not cell.needs:
            return cell.run
        if self.store.record(cell.needs) is None:
            return None
        return replace(cell.run, model=str(self.store.folder(cell.needs) / MODEL))

    def record(self, i: int) -> RunRecord | None:
        """The record of a cell that is done."""
        return self._done.get(i)

    def failure_path(self, run_id: str) -> Path:
        """Where the failure of a run is kept."""
        return self.root / "runs" / ".failed" / f"{run_id}.json"

    def failure(self, i: int) -> Mapping[str, Any] | None:
        """The failure of a cell that failed."""
        run_id = self.id(i)
        path = self.failure_path(run_id) if run_id else None
        if path is None or not path.is_file():
            return None
        try:
            found: Mapping[str, Any] = read_json(path)
            return found
        except TiterError as error:
            return {"id": run_id, "error": str(error), "traceback": ""}

    def fail(self, i: int, error: str, trace: str) -> None:
        """Keep a cell's failure."""
        run_id = self.id(i) or ""
        found = Failure(run_id, error, trace, self.cells[i].labels, me().host, now())
        write_json(self.failure_path(run_id), found)

    def forget(self) -> None:
        """Remove the finished runs of the cells, so that they are done again."""
        for run_id in {self.id(i) for i in range(len(self.cells))} - {None}:
            discard(self.store.folder(str(run_id)))

    def retry(self) -> int:
        """Forget the failures of the study's cells, so that the next run does them again; how many there were."""
        paths = [self.failure_path(run_id) for i in range(len(self.cells)) if (run_id := self.id(i))]
        found = [p for p in paths if p.is_file()]
        for path in found:
            path.unlink()
        return len(found)

    def counts(self) -> dict[State, int]:
        """How many cells are in each state."""
        found = Counter(self.states())
        return {state: found[state] for state in STATES}

    def steps_left(self) -> int:
        """Optimiser steps of the cells that have not ended, at most."""
        return sum(c.steps for c, s in zip(self.cells, self.states(), strict=True) if s not in ENDED)

    def eta(self, workers: int) -> float | None:
        """Seconds to go with `workers`, from the measured time of cells of the same group, else from that of a step.

        None until a cell is done.
        """
        states = self.states()
        left = [c for c, s in zip(self.cells, states, strict=True) if s not in ENDED]
        measured: dict[str, list[float]] = {}
        for i, seconds in self.seconds.items():
            measured.setdefault(self.cells[i].group, []).append(seconds)
        steps = sum(self.cells[i].steps for i in self.seconds)
        pace = sum(self.seconds.values()) / steps if steps else None

        def expected(cell: Cell) -> float | None:
            own = measured.get(cell.group)
            return sum(own) / len(own) if own else None if pace is None else pace * cell.steps

        times = [expected(c) for c in left]
        return None if any(t is None for t in times) else sum(filter(None, times)) / max(workers, 1)


@dataclass(frozen=True)
class Work:
    """What a worker does, as plain data: the cells, their folder, and the worker's number among its machine's."""

    cells: tuple[Cell, ...]
    root: str
    slot: int = 0
    dead_after: float = DEAD_AFTER
    save_seconds: float = SAVE_SECONDS
    to_the_end: bool = True


def work(job: Work, seen: Callable[[Board], None] = lambda board: None) -> None:
    """Do cells until none is left that could be done: ready ones first, then those that others make ready.

    A cell that fails is kept as failed, and the rest goes on where the job is to go `to_the_end`; only a folder that
    cannot be written raises.
    """
    board = Board(job.cells, Path(job.root), job.dead_after)
    model = ""
    while job.to_the_end or "failed" not in board.states():
        taken = _take(board, model)
        if taken is None:
            if all(state in ENDED for state in board.states()):
                return
            time.sleep(POLL)
            continue
        i, claim = taken
        model = board.cells[i].run.model
        with board.claims.beating(claim):
            _do(board, i, job)
        seen(board)


def _take(board: Board, model: str) -> tuple[int, Path] | None:
    """Claim a cell that is ready, rather one of the model that is loaded; None when there is none."""
    order = sorted(range(len(board.cells)), key=lambda i: (board.cells[i].run.model != model, i))
    for i in order:
        run_id = board.id(i) if board.state(i) == "ready" else None
        claim = board.claims.claim(run_id) if run_id else None
        if claim is None:
            continue
        if board.store.record(run_id or "") is None and board.failure(i) is None:
            return i, claim
        board.claims.release(claim)  # someone else did it between the two looks
    return None


def _do(board: Board, i: int, job: Work) -> None:
    run, run_id = board.run(i), board.id(i) or ""
    assert run is not None
    board.store.sweep(run_id)
    try:
        execute(placed(run, job.slot), board.root, save_seconds=job.save_seconds)
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble:
            raise DiskTrouble(trouble_line(board.root, trouble)) from error
        board.fail(i, _words(error), traceback.format_exc())


def placed(run: Run, slot: int) -> Run:
    """The run on the device of a worker's slot: one on `cuda` gets a number, all others are as given."""
    if run.compute.device != "cuda":
        return run
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return run
    return replace(run, compute=replace(run.compute, device=f"cuda:{slot % count}"))


def _words(error: Exception) -> str:
    """An error in one line; what is no user's to mend also says what kind it is."""
    said = " ".join(str(error).split())
    if isinstance(error, TiterError) and said:
        return said
    return f"{type(error).__name__}: {said}".rstrip(": ")


def disk_trouble(error: BaseException | None) -> str:
    """What the disk said, when an error came of it; else ""."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK:
            return error.strerror or str(error)
        if "os error 28" in str(error):  # safetensors writes by itself and raises its own type
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return ""


def trouble_line(root: Path, trouble: str) -> str:
    """The one line about a folder that cannot be written."""
    return f"{root}: cannot be written: {trouble}: free space or mend it, then run again: finished cells are kept"


def run_study(
    cells: Sequence[Cell],
    root: str | Path,
    *,
    workers: int = 1,
    dead_after: float = DEAD_AFTER,
    save_seconds: float = SAVE_SECONDS,
    executor: str = "local",
    to_the_end: bool = True,
    seen: Callable[[Board], None] = lambda board: None,
) -> Board:
    """Do all cells with `workers` processes (one: in this process), or by another executor; the board at the end.

    `seen` is called from time to time, for whoever shows how it goes. A worker that dies marks its cell as failed and
    is replaced. Raises `DiskTrouble` when the folder cannot be written.
    """
    alone = workers <= 1 and executor == "local"
    if not alone and any(cell.run.compute.accelerate_config for cell in cells):
        raise TiterError("accelerate_config: each run takes all accelerators: use it with --workers 1")
    board = Board(cells, Path(root), dead_after)
    _require_writable(board.root)
    seen(board)
    job = Work(tuple(cells), str(board.root.resolve()), 0, dead_after, save_seconds, to_the_end)
    if alone:
        work(job, seen)
    else:
        jobs = [replace(job, slot=i) for i in range(max(workers, 1))]
        with EXECUTORS.read(executor).crew(work, jobs) as crew:
            _oversee(crew, board, seen)
    seen(board)
    return board


def _oversee(crew: Crew, board: Board, seen: Callable[[Board], None]) -> None:
    stray = 0
    while crew.working():
        for pid, code in crew.replaced():
            stray += not _blame(board, pid, code)
        if stray > STRAY * len(crew.jobs):
            raise TiterError("workers keep being lost without a cell in hand: use fewer, or see their machines")
        seen(board)
        time.sleep(POLL)


def _require_writable(root: Path) -> None:
    probe = root / "runs" / f".writable.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        raise DiskTrouble(trouble_line(root, error.strerror or str(error))) from error
    finally:
        if probe.is_file():
            probe.unlink()


def _blame(board: Board, pid: int, code: int) -> bool:
    """Mark the cell that a dead worker was at as failed; whether there was one."""
    held = set(board.claims.held_by(pid))
    how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
    for i in range(len(board.cells)):
        run_id = board.id(i)
        if run_id in held and board.store.record(run_id or "") is None:
            board.fail(i, f"its worker was {how}: out of memory is the usual cause: use fewer workers, then retry", "")
            return True
    return False
