"""A study's results as rows."""

from __future__ import annotations

from typing import Any

from titer.runs.queue import Board, State
from titer.schema.types import RunRecord, to_json


def export_rows(board: Board) -> list[dict[str, Any]]:
    """One flat row per cell: labels, id, state, how it ended, what it spent, and harm and utility along the attack."""
    return [_row(board, i, state) for i, state in enumerate(board.states())]


def _row(board: Board, i: int, state: State) -> dict[str, Any]:
    cell, record, failure = board.cells[i], board.record(i), board.failure(i)
    row: dict[str, Any] = {"kind": cell.run.kind, "model": "", "defence": "", "defence_seed": "", "attack": ""}
    row |= {"data": "", "seed": cell.run.seed, **cell.labels, "state": state, "id": board.id(i) or ""}
    row |= {"error": failure["error"] if failure else "", "end": record.result["end"] if record else ""}
    spend = to_json(record.spend) if record else {}
    row |= {k: spend.get(k) for k in ("steps", "examples", "tokens", "flops", "device_seconds")}
    row["wall_seconds"] = board.seconds.get(i)
    return row | _outcome(board, i, record)


def _outcome(board: Board, i: int, record: RunRecord | None) -> dict[str, Any]:
    """Harm and utility of an attack at its start and end, the most harm, and the step of the first breach."""
    from titer.conditions.parts.breach import bar_against, crossing

    names = ("harm_start", "harm_end", "harm_max", "utility_start", "utility_end", "breach_step")
    run = board.cells[i].run
    if record is None or run.kind != "attack":
        return dict.fromkeys(names)
    curve = board.store.curve(record.id)
    harm, utility = ([p.mean(name) for p in curve.points] for name in ("harm", "utility"))
    known = [v for v in harm if v is not None]
    bar = bar_against([curve], phi=run.breach.phi, utility_drop=run.breach.utility_drop)
    at = crossing(curve, bar).at
    values = harm[0], harm[-1], max(known, default=None), utility[0], utility[-1], at.step if at else None
    return dict(zip(names, values, strict=True))
