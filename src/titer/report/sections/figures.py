"""The charts of the report, each made from stored curves and condition details, each with its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from titer.conditions.parts.bands import curve_band
from titer.report import plots
from titer.report.cells import interval, number
from titer.report.plots import Chart, Layer, Line, PriceRow, Row, Spot, Table
from titer.report.read import COLOURS, Series, Sources, by_series, short
from titer.report.sections.verdicts import PROBES, Json, Price, condition, details, dig
from titer.schema.types import OUTCOMES, Curve

MAX_PANELS = 12
DRAWN = {"model": 0, "undefended": 1, "ignorant": 2, "random": 3}


def _roles(result: Json) -> dict[str, Json]:
    """The price summary of the model and of each control, from the resistance details."""
    found = details(result, "resistance")
    return {"model": found, **(found.get("controls") or {})} if found else {}


def _by_run(sources: Sources) -> dict[str, Json]:
    """What is known of each attacked run: its record, seed, (low, high] steps and the kind of every probe."""
    return {
        str(run["record"]): run
        for result in sources.results
        for role in _roles(result).values()
        for config in role.get("configs", ())
        for run in config.get("by_run", ())
    }


def _harm_marks(curves: Sequence[Curve], runs: Mapping[str, Json]) -> list[tuple[float, float]]:
    """Where each run was first seen breached: (step, mean harm there)."""
    marks = []
    for curve in curves:
        high = (dig(runs.get(curve.record), "steps") or (0, None))[1]
        at = next((p for p in curve.points if p.step == high), None)
        if at is not None:
            marks.append((float(at.step), at.mean("harm") or 0.0))
    return marks


def _line(series: Series, curves: Sequence[Curve], probe: str, runs: Mapping[str, Json]) -> Line:
    rows = curve_band(curves, probe, draws=400)
    return Line(
        series.name,
        series.cls,
        [(r["step"], r["value"]) for r in rows],
        [(r["step"], r["low"]) for r in rows],
        [(r["step"], r["high"]) for r in rows],
        _harm_marks(curves, runs) if probe == "harm" else (),
        [_trace(c, probe) for c in curves] if len(curves) > 1 else (),
    )


def _trace(curve: Curve, probe: str) -> list[tuple[float, float]]:
    """One run's own means: runs that stopped at their breach end there, and the band over all runs ends sooner."""
    return [(float(p.step), m) for p in curve.points if (m := p.mean(probe)) is not None]


def _line_table(lines: Sequence[Line]) -> Table:
    steps = sorted({int(x) for one in lines for x, _ in one.points})
    columns = []
    for one in lines:
        known = zip(one.points, one.lower, one.upper, strict=True)
        columns.append({int(x): f"{number(y)} {interval(low, high)}" for (x, y), (_, low), (_, high) in known})
    rows = tuple((step, *(column.get(step, "–") for column in columns)) for step in steps)
    return Table(("steps", *(one.name for one in lines)), rows)


def _panels(pairs: Iterable[tuple[Series, Curve]]) -> dict[tuple[str, str], list[tuple[Series, Curve]]]:
    groups: dict[tuple[str, str], list[tuple[Series, Curve]]] = {}
    for one, curve in pairs:
        if curve.points and curve.points[-1].step > 0:
            groups.setdefault((curve.config, curve.data), []).append((one, curve))
    return groups


def price_chart(prices: Sequence[Price], budget: float) -> Markup | None:
    """The cheapest breach of each model and control in steps."""
    rows = [PriceRow(p.name, p.cls, p.low, p.at) for p in prices if p.low is not None]
    return plots.price_panel(rows, budget) if rows else None


def harm_curves(sources: Sources) -> list[Chart]:
    """Harm against budget, one panel per attack configuration, every model and control in each."""
    runs, phi = _by_run(sources), _phi(sources)
    charts = []
    for (config, data), pairs in list(_panels(sources.attacks()).items())[:MAX_PANELS]:
        groups = sorted(by_series(pairs).items(), key=lambda item: -DRAWN[item[0].role])
        lines = [_line(series, curves, "harm", runs) for series, curves in groups]
        last = max(c.points[-1].step for _, c in pairs)
        seeds = len({c.seed for _, c in pairs})
        charts.append(
            Chart(
                config,
                f"{data or 'attack'} data, {seeds} {'seed' if seeds == 1 else 'seeds'}",
                plots.curve_panel(config, lines, last, "Harm", phi),
                _line_table(lines[::-1]),
            )
        )
    return charts


def _phi(sources: Sources) -> float | None:
    found = (dig(details(r, "resistance"), "phi") for r in sources.results)
    return next((float(p) for p in found if p is not None), None)


def task_curves(sources: Sources) -> list[Chart]:
    """Quality on harmless tasks against steps, one panel per task."""
    tasks = [(s, c) for s, c in sources.curves if c.data.startswith("task:")]
    charts = []
    for (config, data), pairs in list(_panels(tasks).items())[:MAX_PANELS]:
        groups = sorted(by_series(pairs).items(), key=lambda item: -DRAWN[item[0].role])
        lines = [_line(series, curves, "task", {}) for series, curves in groups]
        name = data.partition(":")[2]
        last = max(c.points[-1].step for _, c in pairs)
        drawing = plots.curve_panel(name, lines, last, "Quality")
        charts.append(Chart(name, config, drawing, _line_table(lines[::-1])))
    return charts


def stability(sources: Sources) -> list[Chart]:
    """Per model: the gain over the reference on each probe set, before any attack, against the margin."""
    groups = [_gain_rows(result, f"m{i % COLOURS}") for i, result in enumerate(sources.results)]
    reach = plots.reach([row for rows in groups for row in rows])
    charts = []
    for result, rows in zip(sources.results, groups, strict=True):
        name = short(str(result["model"]))
        if rows:
            title = f"Change against the reference, {name}"
            drawing = plots.interval_panel(title, rows, "worse ← change in score → better", reach)
            words = str(condition(result, "stability").get("sentence", ""))
            charts.append(Chart(name, words, drawing, _stability_table(_gains(result))))
    return charts


def _gains(result: Json) -> dict[str, Json]:
    sets = dig(details(result, "stability"), "sets") or {}
    return {name: s for name, s in sets.items() if dig(s, "gain", "value") is not None}


def _gain_rows(result: Json, cls: str) -> list[Row]:
    return [_gain_row(name, found, cls) for name, found in _gains(result).items()]


def _gain_row(name: str, found: Json, cls: str) -> Row:
    gain, margin = found["gain"], found.get("margin")
    value = float(gain["value"])
    low, high = (value if gain.get(k) is None else float(gain[k]) for k in ("low", "high"))
    return Row(PROBES.get(name, name), value, low, high, cls, None if margin is None else (-margin, margin))


def _stability_table(sets: Mapping[str, Json]) -> Table:
    rows = []
    for name, s in sets.items():
        gain = s["gain"]
        rows.append(
            (
                PROBES.get(name, name),
                number(dig(s, "reference", "value")),
                number(dig(s, "model", "value")),
                f"{number(gain['value'])} {interval(gain.get('low'), gain.get('high'))}",
                f"±{number(s.get('margin'))}",
                number(s.get("p_not_worse")),
                number(gain.get("n")),
                s.get("word", "–"),
            )
        )
    return Table(
        ("probe set", "reference", "model", "gain [95%]", "margin", "p, worse by the margin", "n", "verdict"),
        tuple(rows),
    )


def outcomes(sources: Sources) -> list[Chart]:
    """Per model and control: what its completions were along its own worst attack."""
    charts, bar = [], _phi(sources) or 0.5
    for series, curves in sorted(by_series(sources.attacks()).items(), key=lambda i: sources.series.index(i[0])):
        groups = _panels((series, c) for c in curves)
        if not groups:
            continue
        (config, data), pairs = min(groups.items(), key=lambda item: _mildness([c for _, c in item[1]], bar))
        chart = _outcome_chart(series, config, data, [c for _, c in pairs])
        charts += [chart] if chart else []
    return charts


def _mildness(curves: Sequence[Curve], bar: float) -> tuple[float, float]:
    """Sorts attack configurations, worst first: the step at which harm first reaches the bar, then the most harm."""
    found = [(p.step, p.mean("harm") or 0.0) for c in curves for p in c.points]
    return min((float(s) for s, h in found if h >= bar), default=math.inf), -max((h for _, h in found), default=0.0)


def _outcome_chart(series: Series, config: str, data: str, curves: Sequence[Curve]) -> Chart | None:
    steps = sorted(set.intersection(*({p.step for p in c.points if p.outcomes.get("harm")} for c in curves)))
    if not steps:
        return None
    points = {s: [p for c in curves for p in c.points if p.step == s] for s in steps}
    names = [*OUTCOMES, "unscored"]
    counts = {n: [sum(p.outcomes["harm"].get(n, 0) for p in points[s]) for s in steps] for n in names}
    layers = [Layer(n, n, tuple(map(float, counts[n]))) for n in names if n in OUTCOMES or any(counts[n])]
    rows = tuple((s, *(counts[layer.name][i] for layer in layers)) for i, s in enumerate(steps))
    table = Table(("steps", *(layer.name for layer in layers)), rows)
    return Chart(series.name, f"{config}, {data} data", plots.stack_panel(series.name, steps, layers), table)


def pareto(sources: Sources) -> Chart | None:
    """Resistance against stability, one spot per model; needs at least two models with both."""
    spots = [s for i, r in enumerate(sources.results) if (s := _spot(i, r)) is not None]
    if len(spots) < 2:
        return None
    base = dig(details(sources.results[0], "resistance"), "controls", "undefended", "worst", "steps", "value")
    if base is not None:
        spots.append(Spot("undefended", "undefended", 0.0, float(base)))
    rows = tuple(
        (s.name, f"{number(s.x)} {interval(*(s.x_range or (None, None)))}", f"{'> ' if s.bound else ''}{number(s.y)}")
        for s in spots
    )
    title = "Steps to breach against change in ability"
    drawing = plots.scatter(title, spots, "change in the worst probe set, before any attack", "steps to breach")
    words = "Right is more able, up is dearer to break. An arrow means: no breach seen up to there."
    return Chart(title, words, drawing, Table(("model", "worst change [95%]", "steps to breach"), rows))


def _spot(index: int, result: Json) -> Spot | None:
    stable, price = condition(result, "stability"), dig(details(result, "resistance"), "worst", "steps") or {}
    change, steps = stable.get("estimate"), price.get("value")
    least = price.get("low") if steps is None else steps
    if change is None or least is None:
        return None
    low, high = stable.get("low"), stable.get("high")
    across = None if low is None or high is None else (float(low), float(high))
    up = None if steps is None or price.get("low") is None else (float(price["low"]), float(steps))
    name = short(str(result["model"]))
    return Spot(name, f"m{index % COLOURS}", float(change), float(least), across, up, steps is None)


def matrices(sources: Sources) -> list[dict[str, Any]]:
    """Generalization: per model and kind of defence data, what an attack with each kind of data does."""
    return [
        {"name": short(str(result["model"])), "rows": rows}
        for result in sources.results
        if (rows := dig(details(result, "generalization"), "matrix"))
    ]
