"""What a defence's own objective did over its run, from the log of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST = 10  # steps below which a batch's luck decides


def movement(logs: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """Mean `loss` over the first and the last fifth of the steps; None when they are too few to compare.

    Only steps that log what the last one logs count: a method with phases has another loss in each.
    """
    same = [entry for entry in logs if entry.keys() == logs[-1].keys() and "loss" in entry]
    if len(same) < LEAST:
        return None
    share = len(same) // 5
    return _mean(same[:share]), _mean(same[-share:])


def _mean(entries: Sequence[Mapping[str, float]]) -> float:
    return sum(entry["loss"] for entry in entries) / len(entries)
