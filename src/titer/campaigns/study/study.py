"""A study as plain data: where it stands, and its results as rows."""

from __future__ import annotations

from typing import Any

from titer.campaigns.study.file import LABELS
from titer.report.study import Failure, Status
from titer.runs.queue import ENDED, STATES, Board, State
from titer.schema.types import RunRecord, to_json


def status_of(board: Board, name: str, workers: int, updated: str) -> Status:
    """Where a study stands, for its page; `updated` is the time to print on it."""
    states = board.states()
    failures = [f for i, s in enumerate(states) if s == "failed" and (f := board.failure(i))]
    going = any(s not in ENDED for s in states)
    return Status(
        name,
        updated,
        states,
        {s: states.count(s) for s in STATES},
        board.eta(workers) if going else None,
        going,
        ("kind", *LABELS, "seconds", "id"),
        [_cells(board, i) for i in range(len(states))],
        [Failure(str(f["id"]), str(f["error"]), str(f["traceback"])) for f in failures],
    )


def _cells(board: Board, i: int) -> list[str]:
    cell, seconds = board.cells[i], board.seconds.get(i)
    labels = [str(cell.labels.get(label, "")) for label in LABELS]
    return [cell.run.kind, *labels, "" if seconds is None else f"{seconds:.1f}", board.id(i) or ""]


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
