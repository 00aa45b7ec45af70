"""Stop a piece of work at any of its file operations: in a forked process, by a signal, with no clean-up."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator

CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.utime"}


def begun(work: Callable[[], object], point: int, how: signal.Signals) -> tuple[int, int]:
    """Do `work` in a fork that gets the signal `how` before file operation `point`; its pid and wait status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other threads, which the work does not need
        pid = os.fork()
    if pid:
        return os.waitpid(pid, os.WUNTRACED)
    left, writes = [point], os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & writes)
        left[0] -= opens or event in CHANGES
        if left[0] == 0:
            left[0] = -1
            os.kill(os.getpid(), how)

    code = 1
    try:
        sys.addaudithook(hook)
        work()
        code = 0
    finally:
        os._exit(code)


def every_kill(work: Callable[[], object]) -> Iterator[int]:
    """Kill `work` at its first file operation, then at its second, and so on until it ends by itself."""
    for point in range(1, 1000):
        _, status = begun(work, point, signal.SIGKILL)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, f"the work failed at operation {point}"
            return
        yield point


def every_stop(work: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Stop `work` at each of its file operations in turn; what is given wakes it up and returns its exit code."""
    for point in range(1, 1000):
        pid, status = begun(work, point, signal.SIGSTOP)
        if not os.WIFSTOPPED(status):
            assert os.WEXITSTATUS(status) == 0, f"the work failed at operation {point}"
            return

        def wake(pid: int = pid) -> int:
            os.kill(pid, signal.SIGCONT)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        yield wake
