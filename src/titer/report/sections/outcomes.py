"""What the models say along their worst attack."""

from __future__ import annotations

import math
from collections.abc import Sequence

from titer.report.charts import Chart, Layer, Table, stack_panel
from titer.report.read import Reading, Series, by_series
from titer.report.sections.curves import panels
from titer.schema.types import OUTCOMES, Curve

TITLE = "What the models say along the attack"


def view(reading: Reading) -> list[Chart]:
    """Per model and control: what its completions were along its own worst attack."""
    charts, bar = [], reading.phi or 0.5
    for series, curves in sorted(by_series(reading.attacks()).items(), key=lambda i: reading.series.index(i[0])):
        groups = [(key, [c for _, c in pairs]) for key, pairs in panels((series, c) for c in curves)]
        if groups:
            (config, data), worst = min(groups, key=lambda item: _mildness(item[1], bar))
            chart = _chart(series, f"{config}, {data} data", worst)
            charts += [chart] if chart else []
    return charts


def _mildness(curves: Sequence[Curve], bar: float) -> tuple[float, float]:
    """Sorts attack configurations, worst first: the step at which harm first reaches the bar, then the most harm."""
    found = [(p.step, p.mean("harm") or 0.0) for c in curves for p in c.points]
    return min((float(s) for s, h in found if h >= bar), default=math.inf), -max((h for _, h in found), default=0.0)


def _chart(series: Series, words: str, curves: Sequence[Curve]) -> Chart | None:
    graded = [{p.step: p.outcomes["harm"] for p in c.points if p.outcomes.get("harm")} for c in curves]
    steps = sorted(set.intersection(*(set(one) for one in graded)))
    if not steps:
        return None
    names = [*OUTCOMES, "unscored"]
    counts = {n: tuple(float(sum(one[s].get(n, 0) for one in graded)) for s in steps) for n in names}
    layers = [Layer(n, n, counts[n]) for n in names if n in OUTCOMES or any(counts[n])]
    rows = tuple((s, *(int(layer.counts[i]) for layer in layers)) for i, s in enumerate(steps))
    table = Table(("steps", *(layer.name for layer in layers)), rows)
    return Chart(series.name, words, stack_panel(series.name, steps, layers), table)
