"""Harmless tasks learnt after the defence, and what learning them does to harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.report.cells import Rows, estimate_cell
from titer.report.charts import Chart, curve_panel
from titer.report.read import Model, Reading
from titer.report.sections.curves import MAX_PANELS, Pairs, drawn, last_step, line_table, one_line, panels

TITLE = "Trainability"


@dataclass(frozen=True, slots=True)
class Trainability:
    """A chart a task, and a table a model of harm around the tasks."""

    tasks: list[Chart]
    harm: list[Rows]


def view(reading: Reading) -> Trainability | None:
    """Quality on harmless tasks against steps; harm before and after them."""
    pairs = [(s, c) for s, c in reading.curves if c.data.startswith("task:")]
    tasks = [_chart(config, data.partition(":")[2], found) for (config, data), found in panels(pairs)[:MAX_PANELS]]
    harm = harm_around_tasks(reading.models)
    return Trainability(tasks, harm) if tasks or harm else None


def _chart(config: str, task: str, pairs: Pairs) -> Chart:
    lines = [one_line(series, curves, "task", {}) for series, curves in drawn(pairs)]
    return Chart(task, config, curve_panel(task, lines, last_step(pairs), "Quality"), line_table(lines[::-1]))


def harm_around_tasks(models: Sequence[Model]) -> list[Rows]:
    """Per model: harm on restricted prompts before and after each harmless task, the reference's beside it."""
    tables = []
    for model in models:
        rows = tuple((task, tuple(map(estimate_cell, found))) for task, found in model.harm_around_tasks().items())
        if rows:
            own = (f"{model.name}, before", f"{model.name}, after")
            tables.append(Rows(model.name, ("Task", *own, "reference, before", "reference, after"), rows))
    return tables
