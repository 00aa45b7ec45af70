"""A study's status as one static HTML page: counts, time to go, failures, and a row per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from titer.campaigns.study.file import LABELS
from titer.runs.queue import ENDED, STATES, Board, State

STYLE = """
:root { color-scheme: light dark; --line: #8884; --done: #2e7d4f; --failed: #c0392b; --running: #2f6fb5 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
.bar { display: flex; height: 1rem; border-radius: .3rem; overflow: hidden; margin: 1rem 0; background: #9997 }
.done { background: var(--done) }
.running { background: var(--running) } .failed, .blocked { background: var(--failed) }
table { border-collapse: collapse; width: 100%; font-size: .88rem } .wide { overflow-x: auto }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.s-done { color: var(--done) }
td.s-failed, td.s-blocked { color: var(--failed) } td.s-running { color: var(--running) }
pre { overflow-x: auto; font-size: .8rem } code { font-size: .85em }
"""


def page(name: str, board: Board, workers: int, updated: str) -> str:
    """The page for a board; it reloads itself until every cell has ended."""
    states = board.states()
    counts = {s: states.count(s) for s in STATES}
    going = any(s not in ENDED for s in states)
    head = '<meta http-equiv="refresh" content="10">' if going else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}<title>{escape(name)}: status</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(name)}</h1><p>{escape(summary(counts, board.eta(workers) if going else None))}. "
        f"Written {escape(updated)}.</p>{_bar(counts, len(states))}{_failures(board, states)}{_table(board, states)}"
        "</body></html>\n"
    )


def summary(counts: Mapping[State, int], seconds: float | None) -> str:
    """The counts in words, with the time to go where it is known."""
    words = [f"{n} {state}" for state, n in counts.items() if n]
    return f"{sum(counts.values())} cells: {', '.join(words)}" + (f"; {duration(seconds)} to go" if seconds else "")


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _bar(counts: Mapping[State, int], total: int) -> str:
    parts = ((s, counts[s]) for s in ("done", "running", "failed", "blocked"))
    inner = "".join(f'<div class="{s}" style="width:{n / total:.2%}" title="{n} {s}"></div>' for s, n in parts if n)
    return f'<div class="bar">{inner}</div>'


def _failures(board: Board, states: Sequence[State]) -> str:
    failed = [f for i, s in enumerate(states) if s == "failed" and (f := board.failure(i))]
    if not failed:
        return ""
    items = "".join(
        f"<details><summary><code>{escape(str(f['id']))}</code> {escape(str(f['error']))}</summary>"
        f"<pre>{escape(str(f['traceback']))}</pre></details>"
        for f in failed
    )
    return f"<h2>Failures</h2>{items}<p>Once mended: <code>titer study retry</code>, then <code>run</code>.</p>"


def _table(board: Board, states: Sequence[State]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in ("state", "kind", *LABELS, "seconds", "id"))
    rows = "".join(_row(board, i, s) for i, s in enumerate(states))
    return f'<h2>Cells</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _row(board: Board, i: int, state: State) -> str:
    cell = board.cells[i]
    seconds = board.seconds.get(i)
    values = [cell.run.kind, *(cell.labels.get(k, "") for k in LABELS), "" if seconds is None else f"{seconds:.1f}"]
    values.append(board.id(i) or "")
    return f'<tr><td class="s-{state}">{state}</td>{"".join(f"<td>{escape(str(v))}</td>" for v in values)}</tr>'
