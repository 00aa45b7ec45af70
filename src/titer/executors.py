"""Do many runs: in this process, or in worker processes that each have their share of cores or an accelerator."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from titer.claims import Claims
from titer.errors import TiterError
from titer.specs import Run
from titer.store import Store
from titer.types import spec_id

Report = Callable[[int, str, str], None]  # (index of the run, its id, "" or the error)


def quiet(index: int, run_id: str, error: str) -> None:
    """A `Report` that says nothing."""


def execute_all(
    runs: Sequence[Run], root: str | Path, *, workers: int = 1, overwrite: bool = False, report: Report = quiet
) -> list[str]:
    """Do the runs and return their ids, in order. Finished ones are not redone; equal ones are done once.

    With several workers each is a spawned process on `cores / workers` threads; a run on `cuda` gets the device of its
    worker. The first failure is raised after the runs already started have ended and been kept.
    """
    if workers > 1 and any(run.accelerate_config for run in runs):
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
    _share(threads)


def _share(threads: int) -> None:
    """Keep this process to its share of the cores; before torch is imported, so that OpenMP hears of it too."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def placed(run: Run, slot: int) -> Run:
    """The run on the device of a worker's slot: one on `cuda` gets a number, all others are as given."""
    if run.device != "cuda":
        return run
    import torch

    count = torch.cuda.device_count()
    return replace(run, device=f"cuda:{slot % count}") if count > 1 else run


def _do(run: Run, root: str | Path, overwrite: bool) -> str:
    """Do a run as the only one at it: whoever else is, here or elsewhere, is waited for and its result taken."""
    from titer.harness import execute, identify

    name = identify(run)
    if not overwrite and Store(root).record(name) is not None:
        return name
    with Claims(root).waiting(name):
        Store(root).sweep(name)
        return execute(placed(run, _slot), root, overwrite=overwrite).id


# ---------------------------------------------------------------------------------------------------------- a crew


class Crew:
    """Spawned processes that each call `task(job)` once, as a context; those that are killed are replaced.

    Cores are shared out evenly. At the end of the block the processes still at work are stopped.
    """

    def __init__(self, task: Callable[[Any], None], jobs: Sequence[Any]) -> None:
        self.task, self.jobs = task, jobs
        self.context = multiprocessing.get_context("spawn")
        self.threads = max(1, (os.cpu_count() or 1) // len(jobs))
        self.crew: dict[int, tuple[SpawnProcess, Connection]] = {}

    def __enter__(self) -> Crew:
        for number in range(len(self.jobs)):
            self._hire(number)
        return self

    def __exit__(self, *_: object) -> None:
        for process, _receiver in self.crew.values():
            process.terminate()
        for process, _receiver in self.crew.values():
            process.join()

    def working(self) -> bool:
        """Whether any process has not ended well yet."""
        return bool(self.crew)

    def replaced(self) -> list[tuple[int, int]]:
        """Replace the processes that were killed: their ids and exit codes (minus the signal).

        Raises the `TiterError` that a task ended with.
        """
        killed = []
        for number, (process, receiver) in list(self.crew.items()):
            code = process.exitcode
            if code is None:
                continue
            del self.crew[number]
            if receiver.poll():
                with suppress(EOFError):
                    raise TiterError(receiver.recv())
            if code != 0:
                killed.append((process.pid or 0, code))
                self._hire(number)
        return killed

    def _hire(self, number: int) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = (self.task, self.jobs[number], self.threads, sender)
        process = self.context.Process(target=_member, args=arguments, daemon=True)
        given = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # a spawned process imports torch before it can set this
        process.start()
        os.environ.pop("OMP_NUM_THREADS") if given is None else os.environ.update(OMP_NUM_THREADS=given)
        sender.close()
        self.crew[number] = process, receiver


def _member(task: Callable[[Any], None], job: Any, threads: int, sender: Connection) -> None:
    """A process of a crew: it does not outlive who started it, and tells what stopped it in one line."""
    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        _share(threads)
        task(job)
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    except Exception as error:
        told = isinstance(error, TiterError)
        sender.send(str(error) if told else f"a worker failed: {type(error).__name__}: {error}")


def follow_parent() -> None:
    """Wait for the process that started this one to end, and end with it; the target of a daemon thread."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
