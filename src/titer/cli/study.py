"""`titer study`: grids of cells from a file; validate, plan, run, status, retry, export."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from titer.cli.app import JsonFlag, app
from titer.cli.text import print_json
from titer.schema.errors import TiterError

if TYPE_CHECKING:
    from titer.campaigns.study.file import Study
    from titer.runs.queue import Board

study_app = App(name="study", help="Grids of cells (models x defences x attacks x data x seeds) from a YAML file.")
PAGE = "status.html"


app.command(study_app)


@study_app.command
def validate(file: Path, *, as_json: JsonFlag = False) -> None:
    """Check a study file: keys, names, options, models, data; and count its cells."""
    study = _read(file)
    if as_json:
        return print_json({"name": study.shared.name, "cells": len(study.cells)})
    print(f"{file}: {len(study.cells)} cells, sound")


@study_app.command
def plan(file: Path, *, output_dir: Path, as_json: JsonFlag = False) -> None:
    """Say how much there is to do: cells, what is done already, optimiser steps left at most."""
    study, board = _open(file, output_dir)
    counts, steps = board.counts(), board.steps_left()
    if as_json:
        return print_json({"cells": len(study.cells), "states": counts, "steps_left": steps, "seconds": board.eta(1)})
    print(_summary(board, 1))
    print(f"at most {steps} optimiser steps left")


@study_app.command
def run(
    file: Path,
    *,
    output_dir: Path,
    workers: int = 1,
    dead_after: float = 120.0,
    save_seconds: float = 60.0,
    executor: str = "local",
    as_json: JsonFlag = False,
) -> None:
    """Do what is left of a study; what fails is kept as failed and the rest goes on. Exit code 1 if anything failed.

    May be stopped or killed and run again at any time, and run by several machines on one shared folder at once.

    Args:
        workers: processes on this machine; each gets its share of the cores, and an accelerator where there is one.
        dead_after: seconds after which a silent machine's cells are taken over; the same for all on one folder.
        save_seconds: how often an immunization saves where it stands, to go on from there.
        executor: who works: local, or a Ray cluster that sees the folder, as ray#address=auto&gpus=1 (extra `ray`).
    """
    from titer.runs.queue import run_study

    study = _read(file)
    signal.signal(signal.SIGTERM, _interrupt)
    with _view(study, output_dir, workers, silent=as_json) as seen:
        board = run_study(
            study.cells,
            output_dir,
            workers=workers,
            dead_after=dead_after,
            save_seconds=save_seconds,
            executor=executor,
            seen=seen,
        )
    _write_page(study, board, workers)
    _tell(study, board, workers, as_json)
    if any(state != "done" for state in board.states()):
        raise SystemExit(1)


@study_app.command
def status(file: Path, *, output_dir: Path, as_json: JsonFlag = False) -> None:
    """Say where every cell of a study stands, and write OUT/status.html."""
    study, board = _open(file, output_dir)
    if output_dir.is_dir():
        _write_page(study, board, 1)
    _tell(study, board, 1, as_json)


@study_app.command
def retry(file: Path, *, output_dir: Path) -> None:
    """Forget a study's failures, so that the next `run` does those cells again."""
    _, board = _open(file, output_dir)
    print(f"{board.retry()} failures forgotten: `titer study run` does those cells again")


@study_app.command
def export(file: Path, *, output_dir: Path, output: Path) -> None:
    """Write one row per cell: labels, state, spend, harm and utility.

    Args:
        output: a .csv or .jsonl file.
    """
    from titer.campaigns.study.study import export_rows
    from titer.schema.files import write_lines, write_text

    if output.suffix not in (".csv", ".jsonl"):
        raise TiterError(f"--output {output}: unknown format: name a .csv or .jsonl file")
    _, board = _open(file, output_dir)
    rows = export_rows(board)
    if output.suffix == ".csv":
        write_text(output, _csv(rows))
    else:
        write_lines(output, rows)
    print(f"{len(rows)} cells: {output}")


def _read(file: Path) -> Study:
    from titer.campaigns.study.file import read_study

    return read_study(file)


def _open(file: Path, output_dir: Path) -> tuple[Study, Board]:
    from titer.runs.queue import Board

    study = _read(file)
    return study, Board(study.cells, output_dir)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _write_page(study: Study, board: Board, workers: int) -> None:
    from titer.campaigns.study.study import status_of
    from titer.report.study import page
    from titer.runs.provenance import now
    from titer.schema.files import write_text

    write_text(board.root / PAGE, page(status_of(board, study.shared.name, workers, now())))


def _summary(board: Board, workers: int) -> str:
    from titer.report.study import summary

    counts = {str(state): number for state, number in board.counts().items()}
    return summary(counts, board.eta(workers))


def _tell(study: Study, board: Board, workers: int, as_json: bool) -> None:
    states = board.states()
    failures = [f for i, s in enumerate(states) if s == "failed" and (f := board.failure(i))]
    if as_json:
        cells = [
            {"key": c.key, "id": board.id(i), "state": states[i], "labels": c.labels}
            for i, c in enumerate(study.cells)
        ]
        return print_json({"states": board.counts(), "failures": failures, "cells": cells})
    for f in failures:
        print(f"failed {f['id']}: {f['error']}")
    print(_summary(board, workers))
    print(f"status: {board.root / PAGE}")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class _view:
    """A context giving what `run_study` calls as it goes: status.html, and a live line where there is a terminal."""

    def __init__(self, study: Study, root: Path, workers: int, silent: bool) -> None:
        self.study, self.root, self.workers = study, root, workers
        self.live = not silent and not os.environ.get("CI") and sys.stderr.isatty()
        self.written = 0.0

    def __enter__(self) -> Callable[[Board], None]:
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("starting", total=len(self.study.cells))
        return self.seen

    def seen(self, board: Board) -> None:
        """Show a board: at most twice a second, the page at most every five seconds."""
        if time.monotonic() - self.written > 5:
            _write_page(self.study, board, self.workers)
            self.written = time.monotonic()
        if self.live:
            counts = board.counts()
            self.bar.update(self.task, completed=counts["done"], description=_summary(board, self.workers))

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()
