"""What the defence cost the model before any attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.report.cells import Cell, estimate_cell, interval, number
from titer.report.charts import Chart, Row, Table, interval_panel, reach
from titer.report.read import ProbeSet, Reading
from titer.report.sections.verdicts import PROBES
from titer.schema.types import Estimate

TITLE = "Stability before any attack"


@dataclass(frozen=True, slots=True)
class Stability:
    """A chart a model; its distance from the reference; how selective the damage is, by what was compared."""

    charts: list[Chart]
    moved: list[tuple[str, Cell]]
    selectivity: list[tuple[str, list[tuple[str, Cell]]]]


def view(reading: Reading) -> Stability | None:
    """Per model: the gain over the reference on each probe set against the margin."""
    sets = [(model, model.probe_sets()) for model in reading.models]
    widest = reach([_row(one, "") for _, found in sets for one in found])
    charts = []
    for model, found in sets:
        if found:
            title = f"Change against the reference, {model.name}"
            rows = [_row(one, model.cls) for one in found]
            drawing = interval_panel(title, rows, "worse ← change in score → better", widest)
            charts.append(Chart(model.name, model.verdict("stability").sentence, drawing, _table(found)))
    moved = [(m.name, estimate_cell(e)) for m in reading.models if (e := m.distance())]
    damage = [(m.name, _cells(kept)) for m in reading.models if (kept := m.selectivity())]
    return Stability(charts, moved, damage) if charts or moved or damage else None


def _cells(found: dict[str, Estimate]) -> list[tuple[str, Cell]]:
    return [(name.replace("_", " "), estimate_cell(e)) for name, e in found.items()]


def _row(one: ProbeSet, cls: str) -> Row:
    value = one.gain.value or 0.0
    low, high = (value if end is None else end for end in (one.gain.low, one.gain.high))
    margin = None if one.margin is None else (-one.margin, one.margin)
    return Row(PROBES.get(one.name, one.name), value, low, high, cls, margin)


def _table(sets: Sequence[ProbeSet]) -> Table:
    columns = ("probe set", "reference", "model", "gain [95%]", "margin", "p, worse by the margin", "n", "verdict")
    return Table(columns, tuple(_cells_of(one) for one in sets))


def _cells_of(one: ProbeSet) -> tuple[object, ...]:
    reference, model = (number(e.value if e else None) for e in (one.reference, one.model))
    gain = f"{number(one.gain.value)} {interval(one.gain.low, one.gain.high)}"
    bar, p = f"±{number(one.margin)}", number(one.p_not_worse)
    return (PROBES.get(one.name, one.name), reference, model, gain, bar, p, number(one.gain.n or None), one.word)
