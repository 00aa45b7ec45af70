"""Many runs, each done once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from titer.runs.executors.local import follow_parent, share_cores
from titer.runs.locks import Claims
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.specs import Cell, Run
from titer.schema.types import Curve, RunRecord, spec_id

Report = Callable[[int, str, str], None]  # (index of the run, its id, "" or the error)


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
    """How runs are done, and where they are kept: each once, whoever asks, on this machine or beside it.

    Attributes:
        root: runs are kept under `root/runs`; finished ones are not redone.
        workers: processes of this machine; each gets its share of the cores, and an accelerator where there is one.
        overwrite: redo runs that are already there.
        report: told of every run as it ends.
    """

    root: Path
    workers: int = 1
    overwrite: bool = False
    report: Report = quiet

    def do(self, cells: Sequence[Cell]) -> list[str]:
        """Do what is not there yet; the id of every cell, in order."""
        runs = [cell.run for cell in cells]
        return execute_all(runs, self.root, workers=self.workers, overwrite=self.overwrite, report=self.report)

    def records(self, cells: Sequence[Cell]) -> list[RunRecord]:
        """The record of every cell, in order."""
        store = Store(self.root)
        return [store.finished(run_id) for run_id in self.do(cells)]

    def curves(self, cells: Sequence[Cell]) -> list[Curve]:
        """The curve of every cell, in order, under the cell's labels."""
        store = Store(self.root)
        named = zip(self.do(cells), cells, strict=True)
        return [store.curve(run_id, cell.role, str(cell.labels.get("data", "none"))) for run_id, cell in named]


def execute_all(
    runs: Sequence[Run], root: str | Path, *, workers: int = 1, overwrite: bool = False, report: Report = quiet
) -> list[str]:
    """Do the runs and return their ids, in order. Finished ones are not redone; equal ones are done once.

    With several workers each is a spawned process on `cores / workers` threads; a run on `cuda` gets the device of its
    worker. The first failure is raised after the runs already started have ended and been kept.
    """
    if workers > 1 and any(run.compute.accelerate_config for run in runs):
        raise TiterError("accelerate_config: each run takes all accelerators: use it with --workers 1")
    keys = [spec_id(run) for run in runs]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    found = _execute({i: runs[i] for i in sorted(first.values())}, root, workers, overwrite, report)
    return [found[first[key]] for key in keys]


def _execute(
    runs: Mapping[int, Run], root: str | Path, workers: int, overwrite: bool, report: Report
) -> dict[int, str]:
    if workers <= 1 or len(runs) == 1:
        return {i: _do_and_report(i, run, root, overwrite, report) for i, run in runs.items()}
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    for slot in range(workers):
        slots.put(slot)
    threads = max(1, (os.cpu_count() or 1) // workers)
    ids: dict[int, str] = {}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(slots, threads))
    try:
        futures: dict[Future[str], int] = {pool.submit(_do, run, root, overwrite): i for i, run in runs.items()}
        for future in as_completed(futures):
            i = futures[future]
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise TiterError("a worker was killed, usually for want of memory: use fewer --workers") from error
            if error is not None:
                report(i, "", str(error))
                raise error
            ids[i] = future.result()
            report(i, ids[i], "")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return ids


def _do_and_report(index: int, run: Run, root: str | Path, overwrite: bool, report: Report) -> str:
    name = _do(run, root, overwrite)
    report(index, name, "")
    return name


_slot = 0


def _start(slots: multiprocessing.Queue[int], threads: int) -> None:
    """Set up a pool's worker: its slot (for its device) and its share of the cores; it does not outlive its parent."""
    global _slot
    threading.Thread(target=follow_parent, daemon=True).start()
    _slot = slots.get()
    share_cores(threads)


def placed(run: Run, slot: int) -> Run:
    """The run on the device of a worker's slot: one on `cuda` gets a number, all others are as given."""
    if run.compute.device != "cuda":
        return run
    import torch

    count = torch.cuda.device_count()
    return _on(run, f"cuda:{slot % count}") if count > 1 else run


def _on(run: Run, device: str) -> Run:
    return replace(run, compute=replace(run.compute, device=device))


def _do(run: Run, root: str | Path, overwrite: bool) -> str:
    """Do a run as the only one at it: whoever else is, here or elsewhere, is waited for and its result taken."""
    from titer.runs.inputs import identify
    from titer.runs.processes import execute

    name = identify(run)
    if not overwrite and Store(root).record(name) is not None:
        return name
    with Claims(root).waiting(name):
        Store(root).sweep(name)
        return execute(placed(run, _slot), root, overwrite=overwrite).id
