"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, ClassVar

from titer.runs.executors.base import said
from titer.schema.errors import TiterError


def share_cores(threads: int) -> None:
    """Keep this process to its share of the cores; before torch is imported, so that OpenMP hears of it too."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Local:
    """Spawned processes of this machine."""

    name: ClassVar[str] = "local"

    def crew(self, task: Callable[[Any], None], jobs: Sequence[Any]) -> Processes:
        """A process for each job."""
        return Processes(task, jobs)


class Processes:
    """Spawned processes that each call `task(job)` once, as a context; those that are killed are replaced.

    Cores are shared out evenly. At the end of the block the processes still at work are stopped.
    """

    def __init__(self, task: Callable[[Any], None], jobs: Sequence[Any]) -> None:
        self.task, self.jobs = task, jobs
        self.context = multiprocessing.get_context("spawn")
        self.threads = max(1, (os.cpu_count() or 1) // len(jobs))
        self.crew: dict[int, tuple[SpawnProcess, Connection]] = {}

    def __enter__(self) -> Processes:
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
        share_cores(threads)
        task(job)
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    except Exception as error:
        sender.send(said(error))


def follow_parent() -> None:
    """Wait for the process that started this one to end, and end with it; the target of a daemon thread."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
