"""Resistance against stability, one spot per model."""

from __future__ import annotations

from titer.report.cells import interval, number
from titer.report.charts import Chart, Spot, Table, scatter
from titer.report.read import Model, Reading

TITLE = "Resistance against stability"


def view(reading: Reading) -> Chart | None:
    """The scatter; it needs at least two models with both."""
    spots = [s for m in reading.models if (s := _spot(m)) is not None]
    if len(spots) < 2:
        return None
    base = reading.models[0].prices().get("undefended")
    steps = base.worst.get("steps") if base else None
    if steps and steps.value is not None:
        spots.append(Spot("undefended", "undefended", 0.0, steps.value))
    title = "Steps to breach against change in ability"
    drawing = scatter(title, spots, "change in the worst probe set, before any attack", "steps to breach")
    words = "Right is more able, up is dearer to break. An arrow means: no breach seen up to there."
    table = Table(("model", "worst change [95%]", "steps to breach"), tuple(_cells(s) for s in spots))
    return Chart(title, words, drawing, table)


def _cells(spot: Spot) -> tuple[object, ...]:
    change = f"{number(spot.x)} {interval(*(spot.x_range or (None, None)))}"
    return (spot.name, change, f"{'> ' if spot.bound else ''}{number(spot.y)}")


def _spot(model: Model) -> Spot | None:
    change, prices = model.verdict("stability").estimate, model.prices()
    steps = prices["model"].worst.get("steps") if prices else None
    if change is None or change.value is None or steps is None:
        return None
    least = steps.low if steps.value is None else steps.value
    if least is None:
        return None
    across = None if change.low is None or change.high is None else (change.low, change.high)
    up = None if steps.value is None or steps.low is None else (steps.low, steps.value)
    return Spot(model.name, model.cls, change.value, least, across, up, steps.value is None)
