"""`titer ls`: everything that is registered, and `titer env`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from titer.cli.app import JsonFlag, app
from titer.cli.text import print_json

Rows = list[dict[str, Any]]
What = Literal[
    "defences", "guards", "attacks", "suites", "judges", "conditions", "datasets", "models", "all", "overview"
]


@app.command
def ls(what: What = "overview", *, as_json: JsonFlag = False) -> None:
    """List what is registered: defences, guards, attacks, suites, judges, conditions, data sets, models.

    Args:
        what: a kind with a line for each of its members; without it, their names alone; all for every line.
        as_json: print the rows as JSON.
    """
    found = listing("all" if what == "overview" else what)
    if as_json:
        return print_json(found)
    if what == "overview":
        return _overview(found)
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in found.items():
        table = Table(title=title, title_justify="left", show_header=bool(rows), box=None, padding=(0, 2, 0, 0))
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(v) for v in row.values()))
        console.print(table)


def _overview(found: Mapping[str, Rows]) -> None:
    """The names of every kind, and where to read more."""
    for title, rows in found.items():
        print(f"{title}: {', '.join(str(row['name']) for row in rows)}")
    print("`titer ls KIND` says what each of a kind is")


@app.command
def env(*, as_json: JsonFlag = False) -> None:
    """Print versions and hardware, for bug reports.

    Args:
        as_json: print them as JSON.
    """
    import torch

    from titer.runs.provenance import environment

    found = dict(environment()) | {"cuda": torch.version.cuda, "devices": torch.cuda.device_count()}
    if as_json:
        return print_json(found)
    for key, value in found.items():
        inner = " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        print(f"{key}: {inner}")


def listing(what: str) -> dict[str, Rows]:
    """Rows by kind; `what` is a kind or `all`."""
    kinds: dict[str, Callable[[], Rows]] = {
        "defences": _defences,
        "guards": _guards,
        "attacks": _attacks,
        "suites": _suites,
        "judges": _judges,
        "conditions": _conditions,
        "datasets": _datasets,
        "models": _models,
    }
    return {name: rows() for name, rows in kinds.items() if what in (name, "all")}


def _conditions() -> Rows:
    from dataclasses import fields

    from titer.conditions import CONDITIONS

    return [
        {"name": name, "what": _first_line(cls), "options": ", ".join(f.name for f in fields(cls))}
        for name, cls in CONDITIONS.items()
    ]


def _first_line(cls: Any) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _defences() -> Rows:
    from titer.defences import DEFENCES

    return [_method(name, cls) for name, cls in DEFENCES.items()]


def _guards() -> Rows:
    from titer.guards import GUARDS

    return [_method(name, cls) for name, cls in GUARDS.items()]


def _method(name: str, cls: Any) -> dict[str, Any]:
    return {
        "name": name,
        "what": _first_line(cls),
        "stage": cls.stage,
        "needs": ", ".join(sorted(cls.needs)),
        "passes": cls.passes,
        "source": cls.source,
        "broken by": cls.broken_by,
    }


def _attacks() -> Rows:
    from titer.attacks import ATTACKS

    return [{"name": name, "what": _first_line(cls), "source": cls.source} for name, cls in ATTACKS.items()]


def _suites() -> Rows:
    from titer.evaluation.suites import SUITES

    return [
        {
            "name": s.name,
            "hash": s.hash,
            "members": len(s.members),
            "runs a model": sum(len(m.seeds) for m in s.members),
            "budget (steps)": s.max_steps,
        }
        for s in SUITES.values()
    ]


def _judges() -> Rows:
    from titer.judges import JUDGES

    return [{"name": name, "what": _first_line(cls)} for name, cls in JUDGES.items()]


def _datasets() -> Rows:
    from titer.data.published import FORMATS
    from titer.data.rows import EMBEDDED

    rows = [{"name": name, "where": "embedded"} for name in EMBEDDED]
    return rows + [{"name": name, "where": where} for name, where in FORMATS.items()]


def _models() -> Rows:
    from titer.models.embedded import ORGANISM

    return [{"name": f"organism/{kind}"} for kind in ORGANISM] + [{"name": "smollm2"}]
