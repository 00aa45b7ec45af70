"""What an executor is: it starts a crew of workers, and says which were lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Protocol

from titer.schema.errors import TiterError


def said(error: Exception) -> str:
    """What stopped a task, in one line."""
    return str(error) if isinstance(error, TiterError) else f"a worker failed: {type(error).__name__}: {error}"


class Crew(Protocol):
    """Workers that each call their task once, as a context; those that are lost are replaced."""

    jobs: Sequence[Any]

    def __enter__(self) -> Crew:
        """Start the workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop those that are still at work."""

    def working(self) -> bool:
        """Whether any worker has not ended well yet."""

    def replaced(self) -> list[tuple[int, int]]:
        """Replace the workers that were lost: process ids and exit codes; raises what a task ended with."""


class Executor(Protocol):
    """A frozen dataclass of where to work."""

    name: ClassVar[str]

    def crew(self, task: Callable[[Any], None], jobs: Sequence[Any]) -> Crew:
        """Workers, one for each job."""
