"""What the command line prints: progress, tables and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class progress:
    """A context giving a `Report`: a live count on a terminal; silence under CI, with --json, or off a terminal."""

    def __init__(self, title: str, silent: bool) -> None:
        self.title = title
        self.silent = silent or bool(os.environ.get("CI")) or not sys.stderr.isatty()

    def __enter__(self) -> Any:
        if self.silent:
            return lambda index, run_id, error: None
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.bar.start()
        task = self.bar.add_task(f"{self.title}: starting", total=None)
        done = 0

        def report(index: int, run_id: str, error: str) -> None:
            nonlocal done
            done += 1
            self.bar.update(task, description=f"{self.title}: {done} runs done, last {run_id or error}")

        return report

    def __exit__(self, *_: object) -> None:
        if not self.silent:
            self.bar.stop()


def print_json(value: Any) -> None:
    """JSON on standard output."""
    from titer.schema.types import to_json

    print(json.dumps(to_json(value), ensure_ascii=False))


def show_results(found: Sequence[Mapping[str, Any]], path: Path, as_json: bool) -> None:
    """Verdicts of each model as a table, with the report's path; or the results as JSON."""
    if as_json:
        return print_json({"results": found, "report": path})
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "condition", "verdict", "estimate [95% interval]", "n", "seeds"):
        table.add_column(column, no_wrap=not column.startswith("estimate"))
    for one in found:
        for name, c in one["conditions"].items():
            seeds = ",".join(map(str, c["seeds"]))
            table.add_row(_short(one["model"]), name, c["verdict"], _interval(c), str(c["n"]), seeds)
    console = Console()
    console.print(table)
    for one in found:
        for flag in one["flags"]:
            line = f"{_short(one['model'])}: flag {flag['code']}: {flag['message']}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    print(f"report: {path}")


def show_tunes(found: Sequence[Mapping[str, Any]], path: Path, as_json: bool) -> None:
    """HS and FA per guard and poison ratio, with the report's path; or the results as JSON."""
    if as_json:
        return print_json({"results": found, "report": path})
    from rich import box
    from rich.console import Console
    from rich.table import Table

    for one in found:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=_short(one["model"]), title_justify="left")
        for column in ("guard", "poison", "HS [95%]", "FA [95%]", "n", "seeds"):
            table.add_column(column, no_wrap=True)
        for row in one["rows"]:
            seeds = ",".join(map(str, row["hs"]["seeds"]))
            cells = (f"{row['ratio']:g}", _rate(row["hs"]), _rate(row["fa"]), str(row["hs"]["n"]), seeds)
            table.add_row(row["guard"], *cells)
        Console().print(table)
    print(f"report: {path}")


def _rate(e: Mapping[str, Any]) -> str:
    return "-" if e["value"] is None else f"{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]"


def _short(model: str) -> str:
    """A model as tables name it: a folder by its last part, an embedded model or a hub id whole."""
    return Path(model).name if Path(model).is_dir() else model


def _interval(c: Mapping[str, Any]) -> str:
    """An estimate with its interval and unit; an open end is shown as such."""
    if c["estimate"] is None and c["low"] is None:
        return "-"
    ends = [">" if v is None else f"{v:.3g}" for v in (c["low"], c["high"])]
    value = f"> {ends[0]}" if c["estimate"] is None else f"{c['estimate']:.3g}"
    return f"{value} [{ends[0]}, {ends[1] if c['high'] is not None else 'no end'}] {c['unit']}"


def show_curves(done: Any) -> None:
    """Harm and utility at every probe of an attack, one column per seed."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=done.curves[0].config)
    table.add_column("step", justify="right")
    for curve in done.curves:
        table.add_column(f"seed {curve.seed}: harm", justify="right")
        table.add_column("utility", justify="right")
    for step in sorted({p.step for c in done.curves for p in c.points}):
        cells = [str(step)]
        for curve in done.curves:
            point = next((p for p in curve.points if p.step == step), None)
            cells += [
                "" if v is None else f"{v:.2f}"
                for v in (point and point.mean("harm"), point and point.mean("utility"))
            ]
        table.add_row(*cells)
    Console().print(table)
