"""Tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.runs.executors.base import said
from titer.schema.errors import TiterError


@dataclass(frozen=True)
class Ray:
    """A Ray cluster to work on: its address (or `auto`), and the cores and accelerators of each worker."""

    name: ClassVar[str] = "ray"
    address: str = "auto"
    cpus: float = 1
    gpus: float = 0

    def crew(self, task: Callable[[Any], None], jobs: Sequence[Any]) -> RayCrew:
        """A task of the cluster for each job."""
        return RayCrew(task, jobs, self.address, self.cpus, self.gpus)


class RayCrew:
    """Ray tasks that each call `task(job)` once, as a context; the interface of `titer.runs.executors.base.Crew`.

    `address` is that of a running cluster, or `auto`. Each task asks for `cpus` cores and `gpus` accelerators, which
    Ray makes the only ones it sees.
    """

    def __init__(
        self, task: Callable[[Any], None], jobs: Sequence[Any], address: str, cpus: float = 1, gpus: float = 0
    ) -> None:
        self.task, self.jobs = task, jobs
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.crew: dict[Any, int] = {}

    def __enter__(self) -> RayCrew:
        try:
            import ray
        except ImportError:
            raise TiterError("executor ray: ray is not installed: pip install 'titer[ray]'") from None
        try:
            ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise TiterError(f"executor ray: {self.address} cannot be joined: {first}: `ray start` one") from None
        threads = {"env_vars": {"OMP_NUM_THREADS": str(max(int(self.cpus), 1))}}
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0, "runtime_env": threads}
        self.remote = ray.remote(**options)(_told)
        for number in range(len(self.jobs)):
            self._hire(number)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for reference in self.crew:
            ray.cancel(reference, force=True)
        ray.shutdown()

    def working(self) -> bool:
        """Whether any task has not ended well yet."""
        return bool(self.crew)

    def replaced(self) -> list[tuple[int, int]]:
        """Replace the tasks whose worker or node was lost: (0, -9) for each. Raises the error a task ended with."""
        import ray

        lost: list[tuple[int, int]] = []
        ended, _ = ray.wait(list(self.crew), num_returns=len(self.crew), timeout=0)
        for reference in ended:
            number = self.crew.pop(reference)
            try:
                told = ray.get(reference)
            except ray.exceptions.RayError:
                lost.append((0, -9))
                self._hire(number)
                continue
            if told:
                raise TiterError(told)
        return lost

    def _hire(self, number: int) -> None:
        self.crew[self.remote.remote(self.task, self.jobs[number])] = number


def _told(task: Callable[[Any], None], job: Any) -> str:
    """Do a job; what stopped it, in one line, or ""."""
    try:
        task(job)
    except Exception as error:
        return said(error)
    return ""
