"""What a defence's own objective did over its run, from the log of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST = 10  # steps below which a batch's luck decides
BESIDES = {"step", "grad_norm"}


def movement(logs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]] | None:
    """The loss and each of its terms: means over the first and the last fifth of the steps; None when they are few.

    Only steps that log what the last one logs count: a method with phases has another loss in each.
    """
    same = [entry for entry in logs if entry.keys() == logs[-1].keys() and "loss" in entry]
    if len(same) < LEAST:
        return None
    share = len(same) // 5
    return {k: (_mean(same[:share], k), _mean(same[-share:], k)) for k in sorted(same[0].keys() - BESIDES)}


def _mean(entries: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(entry[key] for entry in entries) / len(entries)
