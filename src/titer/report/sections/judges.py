"""What `titer judge` found: rates by probe set, then agreement of every two judges, then what asking has cost."""

from __future__ import annotations

from collections.abc import Sequence

from titer.report.cells import Cell, Rows, number
from titer.report.read import Json, Model, Reading
from titer.schema.types import OUTCOMES

TITLE = "What other judges say"


def view(reading: Reading) -> list[Rows]:
    """Every finding once: models of one folder share theirs."""
    return judges(reading.models)


def judges(models: Sequence[Model]) -> list[Rows]:
    """The tables of all models."""
    found: dict[str, list[Rows]] = {}
    for model in models:
        if judged := model.judged():
            found.setdefault(repr(judged), [*_rates(judged), *_agreement(judged), *_bills(judged)])
    return [table for tables in found.values() for table in tables]


def _rates(judged: Json) -> list[Rows]:
    columns = ("Judge", "completions", "not scored", "mean harm", *OUTCOMES)
    return [
        Rows(f"{probe}, {len(judged['runs'])} runs", columns, tuple((str(r["judge"]), _rate(r)) for r in given))
        for probe, given in judged["rates"].items()
    ]


def _rate(r: Json) -> tuple[Cell, ...]:
    return tuple(Cell(number(v)) for v in (r["n"], r["unscored"], r["harm"], *(r["outcomes"][o] for o in OUTCOMES)))


def _agreement(judged: Json) -> list[Rows]:
    keys = ("n", "same", "kappa", "kappa_outcomes", "spearman")
    rows = tuple(
        (" / ".join(a["judges"]), tuple(Cell(number(v)) for v in (*(a[k] for k in keys), len(a["differ"]))))
        for a in judged["agreements"]
    )
    columns = ("Judges", "completions", "same breach", "κ of breach", "κ of outcomes", "Spearman", "differ on")
    return [Rows("Agreement of two judges", columns, rows)] if rows else []


def _bills(judged: Json) -> list[Rows]:
    """What asking has cost, for judges that cost something."""
    bills = judged.get("bills") or {}
    columns = list(dict.fromkeys(k for bill in bills.values() for k in bill))
    rows = tuple((str(name), tuple(Cell(number(bill.get(k))) for k in columns)) for name, bill in bills.items())
    return [Rows("Cost of judging", ("Judge", *(c.replace("_", " ") for c in columns)), rows)] if rows else []
