"""A study's status as one static HTML page: counts, time to go, failures, and a row per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from titer.report.untrusted import html


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed: its id, the error in a line, and where it was raised."""

    id: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Status:
    """Where a study stands, as plain data.

    `states` holds a word per cell, `counts` how many cells are in each; `rows` has one row per cell under `columns`.
    `seconds` is the time to go, None where it is not known; a study that is not `going` has ended in every cell.
    """

    name: str
    updated: str
    states: Sequence[str]
    counts: Mapping[str, int]
    seconds: float | None
    going: bool
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    failures: Sequence[Failure] = ()

    @property
    def words(self) -> str:
        """The counts in words, with the time to go."""
        return summary(self.counts, self.seconds if self.going else None)

    @property
    def cells(self) -> Sequence[tuple[str, Sequence[str]]]:
        """State and row of every cell."""
        return list(zip(self.states, self.rows, strict=True))


def page(status: Status) -> str:
    """The page of a study; it reloads itself until every cell has ended."""
    return html("study.html", status=status)


def summary(counts: Mapping[str, int], seconds: float | None) -> str:
    """The counts in words, with the time to go where it is known."""
    words = [f"{n} {state}" for state, n in counts.items() if n]
    return f"{sum(counts.values())} cells: {', '.join(words)}" + (f"; {duration(seconds)} to go" if seconds else "")


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
