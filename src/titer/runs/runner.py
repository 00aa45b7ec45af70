"""Many runs, each done once, whoever asks: the one way from a spec to its record and its curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from titer.runs.queue import Board, run_study
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.specs import Cell
from titer.schema.types import Curve, RunRecord

Report = Callable[[int, str, str], None]  # (index of the cell, the run's id, "" or the error)
SCRATCH = (".failed", ".claims", ".checkpoints")  # folders of `runs/` that a refused run need not leave


def quiet(index: int, run_id: str, error: str) -> None:
    """A `Report` that says nothing."""


class Runs(Protocol):
    """Whoever does runs: a `Runner`, or in tests one that makes up curves."""

    @property
    def root(self) -> Path:
        """The folder that the runs are kept under."""

    def curves(self, cells: Sequence[Cell]) -> list[Curve]:
        """The curve of every cell, in order, under the cell's labels."""

    def records(self, cells: Sequence[Cell]) -> list[RunRecord]:
        """The record of every cell, in order."""


@dataclass(frozen=True)
class Runner:
    """How runs are done, and where they are kept.

    Attributes:
        root: runs are kept under `root/runs`; finished ones are not redone.
        workers: processes of this machine; each gets its share of the cores, and an accelerator where there is one.
        overwrite: redo runs that are already there.
        report: told of every run as it ends.
        executor: who works: `local`, or a Ray cluster as `ray#address=auto&gpus=1`.
    """

    root: Path
    workers: int = 1
    overwrite: bool = False
    report: Report = quiet
    executor: str = "local"

    def do(self, cells: Sequence[Cell]) -> list[str]:
        """Do what is not there yet; the id of every cell, in order.

        Equal runs are done once. The first failure is raised as a `TiterError`; what was finished by then is kept.
        """
        board = Board(cells, Path(self.root))
        ids = [board.id(i) or "" for i in range(len(cells))]
        once = {run_id: i for i, run_id in reversed(list(enumerate(ids)))}
        wanted = [cells[i] for i in sorted(once.values())]
        if wanted:
            self._done(Board(wanted, board.root), once)
        return ids

    def _done(self, board: Board, places: dict[str, int]) -> None:
        """Let the queue do a board's cells, and raise what went wrong."""
        there = board.root.exists()
        board.retry()
        if self.overwrite:
            board.forget()
        told = _Told(self.report, places)
        try:
            run_study(
                board.cells,
                board.root,
                workers=min(self.workers, len(board.cells)),
                executor=self.executor,
                to_the_end=False,
                seen=told,
            )
            errors = [failure["error"] for i in range(len(board.cells)) if (failure := board.failure(i))]
            board.retry()
        finally:
            _tidy(board.root, there)
        if errors:
            raise TiterError(str(errors[0]))

    def records(self, cells: Sequence[Cell]) -> list[RunRecord]:
        """The record of every cell, in order."""
        store = Store(self.root)
        return [store.finished(run_id) for run_id in self.do(cells)]

    def curves(self, cells: Sequence[Cell]) -> list[Curve]:
        """The curve of every cell, in order, under the cell's labels."""
        store = Store(self.root)
        named = zip(self.do(cells), cells, strict=True)
        return [store.curve(run_id, cell.role, str(cell.labels.get("data", "none"))) for run_id, cell in named]


@dataclass
class _Told:
    """Tells a `Report` of every cell of a board as it ends, once."""

    report: Report
    places: dict[str, int]
    told: set[int] = field(default_factory=set)

    def __call__(self, board: Board) -> None:
        for i, state in enumerate(board.states()):
            if i in self.told or state not in ("done", "failed"):
                continue
            self.told.add(i)
            run_id, failure = board.id(i) or "", board.failure(i)
            error = str(failure["error"]) if failure else ""
            self.report(self.places[run_id], "" if error else run_id, error)


def _tidy(root: Path, there: bool) -> None:
    """Remove folders that a refused run left empty."""
    runs = root / "runs"
    left = [*(runs / name for name in SCRATCH), runs, *(() if there else (root,))]
    for folder in left:
        with suppress(OSError):
            folder.rmdir()
