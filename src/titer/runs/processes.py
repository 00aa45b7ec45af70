"""A run on several processes of this machine: `accelerate_config` is `fsdp2`, `multi_gpu` or an accelerate YAML file.

`fsdp2` keeps shards of weights, gradients and optimiser state on every accelerator, `multi_gpu` all of them on each;
see `titer.models.shards` for how. The batch of a step is that of the spec, whatever the number of processes: the rows
are shared out, and the result is that of one process up to rounding. One process that is lost ends the run.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from titer.runs import execute as here
from titer.runs.checks import check_run
from titer.runs.execute import SAVE_SECONDS
from titer.runs.executors.local import follow_parent
from titer.runs.layout import Layout, layout
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.files import scratch_beside
from titer.schema.specs import Run
from titer.schema.types import RunRecord

PATIENCE = timedelta(hours=2)  # how long processes wait for each other: a slow judge is asked by the first alone


@dataclass(frozen=True)
class _Job:
    run: Run
    root: str
    overwrite: bool
    save_seconds: float
    layout: Layout
    scratch: str
    threads: int


def execute(run: Run, root: str | Path, *, overwrite: bool = False, save_seconds: float = SAVE_SECONDS) -> RunRecord:
    """Do a run, here or on the processes that its layout asks for; the record that the first one has written."""
    found = layout(run.compute.accelerate_config, run.compute.device)
    if found is None:
        return here.execute(run, root, overwrite=overwrite, save_seconds=save_seconds)
    check_run(run)
    _check_devices(run, found)
    threads = max(1, (os.cpu_count() or 1) // found.processes)
    with _scratch(Path(root)) as scratch:
        ids = _done_by_all(_Job(run, str(root), overwrite, save_seconds, found, str(scratch), threads))
    return Store(root).finished(ids)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder beside the runs where the processes meet, and where what only the first should write ends."""
    folder = scratch_beside(root / "runs" / "processes")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise TiterError(f"{root}: cannot be written: {error.strerror}: choose another folder") from None
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_devices(run: Run, found: Layout) -> None:
    if run.compute.device.startswith("cpu"):
        return
    import torch

    if torch.cuda.device_count() < found.processes:
        raise TiterError(
            f"accelerate_config {found}: {torch.cuda.device_count()} accelerators here, {found.processes} are needed"
        )


def _done_by_all(job: _Job) -> str:
    """Start the processes, wait for the first, and stop all as soon as one of them fails; the run's id."""
    context = multiprocessing.get_context("spawn")
    crew: list[tuple[Any, Connection]] = []
    try:
        for rank in range(job.layout.processes):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_process, args=(job, rank, sender), daemon=True)
            process.start()
            sender.close()
            crew.append((process, receiver))
        return _watched(crew)
    finally:
        for process, _ in crew:
            process.terminate()
        for process, _ in crew:
            process.join()


def _watched(crew: list[tuple[Any, Connection]]) -> str:
    said: dict[int, str] = {}
    while len(said) < len(crew):
        for rank, (process, receiver) in enumerate(crew):
            alive = process.is_alive()
            if rank in said or not receiver.poll(0.05):
                if rank not in said and not alive:
                    raise _killed(rank)
                continue
            said[rank] = _answer(rank, receiver)
    return said[0]


def _answer(rank: int, receiver: Connection) -> str:
    try:
        fine, text = receiver.recv()
    except EOFError:
        raise _killed(rank) from None
    if not fine:
        raise TiterError(text)
    return str(text)


def _killed(rank: int) -> TiterError:
    return TiterError(f"process {rank} was killed, usually for want of memory: use more accelerators")


def _process(job: _Job, rank: int, sender: Connection) -> None:
    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        sender.send((True, _rank(job, rank)))
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    except Exception as error:
        told = isinstance(error, TiterError)
        if rank > 0 and not told:
            time.sleep(5)  # it may only have lost the process that has something to say
        sender.send((False, str(error) if told else f"process {rank}: {type(error).__name__}: {error}"))


def _rank(job: _Job, rank: int) -> str:
    """One of the processes: all do the same run, and what others than the first write is thrown away."""
    import torch
    from torch import distributed

    torch.set_num_threads(job.threads)
    cpu = job.run.compute.device.startswith("cpu")
    if not cpu:
        torch.cuda.set_device(rank)
    meet = f"file://{Path(job.scratch) / 'meet'}"
    backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend, init_method=meet, rank=rank, world_size=job.layout.processes, timeout=PATIENCE
    )
    try:
        root = job.root if rank == 0 else str(Path(job.scratch) / str(rank))
        return here.execute(job.run, root, overwrite=job.overwrite, save_seconds=job.save_seconds).id
    finally:
        distributed.destroy_process_group()
