"""The chart kinds of the report: lines with bands, intervals against a margin, stacked shares, a scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from titer.report import svg
from titer.report.cells import number
from titer.report.svg import Points, Scale

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 34, 348, 12, 196


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers behind a chart, for those who cannot or do not want to read it from the drawing."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its title, a caption in words and the table behind it."""

    title: str
    caption: str
    drawing: Markup
    table: Table


@dataclass(frozen=True, slots=True)
class Line:
    """A line to draw: (x, y) points, an optional band, event marks, the single runs, and its CSS class."""

    name: str
    cls: str
    points: Points
    lower: Points = ()
    upper: Points = ()
    marks: Points = ()
    traces: Sequence[Points] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an interval chart."""

    name: str
    value: float
    low: float
    high: float
    cls: str = "m0"
    margin: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """One model in a scatter, with its interval on each axis where known; `bound` draws an arrow upwards."""

    name: str
    cls: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    bound: bool = False


@dataclass(frozen=True, slots=True)
class PriceRow:
    """A cost-to-breach: first seen at `at`, not yet at `low`; `at` None is no breach up to `low`."""

    name: str
    cls: str
    low: float
    at: float | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One outcome's counts along the steps."""

    name: str
    cls: str
    counts: tuple[float, ...] = field(default_factory=tuple)


def curve_panel(title: str, lines: Sequence[Line], last: int, y_name: str, threshold: float | None = None) -> Markup:
    """Quality or harm in [0, 1] against steps (log(1 + step)), bands under lines, a cross where a run is breached."""
    x, y = Scale(0, max(last, 1), LEFT, RIGHT, log=True), Scale(0, 1, BOTTOM, TOP)
    shapes = [*_unit_axis(y), *_step_axis(x, last)]
    if threshold is not None:
        shapes.append(svg.segment(LEFT, y(threshold), RIGHT, y(threshold), "threshold"))
        shapes.append(svg.label(LEFT + 4, y(threshold) - 4, f"φ = {number(threshold)}", "tick"))
    for one in lines:
        if one.lower:
            shapes.append(svg.area(_scaled(one.lower, x, y), _scaled(one.upper, x, y), f"band {one.cls}"))
    for one in lines:
        shapes += [svg.line(_scaled(trace, x, y), f"trace {one.cls}") for trace in one.traces]
        shapes.append(svg.line(_scaled(one.points, x, y), f"line {one.cls}"))
        shapes += [svg.breach_mark(px, py, f"mark {one.cls}") for px, py in _scaled(one.marks, x, y)]
    ends = "; ".join(f"{one.name} ends at {number(one.points[-1][1])}" for one in lines if one.points)
    return svg.figure(WIDTH, HEIGHT, f"{y_name} against attack steps, {title}", ends or "no data", shapes)


def _scaled(points: Points, x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(px), y(min(max(py, 0), 1))) for px, py in points]


def _unit_axis(y: Scale) -> list[Markup]:
    shapes = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        shapes.append(svg.segment(LEFT, y(value), RIGHT, y(value), "axis" if value == 0 else "grid"))
        shapes.append(svg.label(LEFT - 6, y(value) + 4, f"{value:g}", anchor="end"))
    return shapes


def _step_axis(x: Scale, last: int, name: str = "steps") -> list[Markup]:
    shapes = []
    for tick in svg.step_ticks(last):
        shapes.append(svg.segment(x(tick), BOTTOM, x(tick), BOTTOM + 4, "axis"))
        shapes.append(svg.label(x(tick), BOTTOM + 17, f"{tick:,}", anchor="middle"))
    return [*shapes, svg.label((LEFT + RIGHT) / 2, BOTTOM + 34, name, "axis-name", "middle")]


def stack_panel(title: str, steps: Sequence[int], layers: Sequence[Layer]) -> Markup:
    """Shares of outcomes at each probe, stacked to 1, in the given order from the bottom."""
    x, y = Scale(0, max([*steps, 1]), LEFT, RIGHT, log=True), Scale(0, 1, BOTTOM, TOP)
    totals = [sum(layer.counts[i] for layer in layers) or 1.0 for i in range(len(steps))]
    base = [0.0] * len(steps)
    shapes = [*_unit_axis(y)]
    for layer in layers:
        top = [b + layer.counts[i] / totals[i] for i, b in enumerate(base)]
        lower = [(x(s), y(b)) for s, b in zip(steps, base, strict=True)]
        upper = [(x(s), y(t)) for s, t in zip(steps, top, strict=True)]
        shapes.append(svg.area(lower, upper, f"layer {layer.cls}"))
        base = top
    ends = "; ".join(f"{layer.name} {layer.counts[-1] / totals[-1]:.0%}" for layer in layers) if steps else "no data"
    shapes += _step_axis(x, max([*steps, 0]))
    return svg.figure(WIDTH, HEIGHT, f"Outcomes along the attack, {title}", f"At the end: {ends}", shapes)


def reach(rows: Sequence[Row]) -> float:
    """How far from zero an axis must go to hold all rows; charts that are compared share it."""
    edges = [abs(v) for r in rows for v in (r.low, r.high, r.value, *(r.margin or ()))]
    return float(max([*edges, 0.05])) * 1.1


def interval_panel(title: str, rows: Sequence[Row], x_name: str, reach: float) -> Markup:
    """A dot and its interval per row around zero, on an axis from -reach to reach; the margin's zone is shaded."""
    left, right, height = 122, RIGHT, 26
    x = Scale(-reach, reach, left, right)
    bottom = TOP + height * len(rows)
    shapes = []
    for i, row in enumerate(rows):
        at = TOP + height * i + height / 2
        if row.margin:
            shapes.append(svg.rect(x(row.margin[0]), at - 11, x(row.margin[1]) - x(row.margin[0]), 22, "zone"))
        shapes.append(svg.label(left - 8, at + 4, _fit(row.name, 19), "row-name", "end"))
        shapes.append(svg.segment(x(row.low), at, x(row.high), at, f"whisker {row.cls}"))
        shapes.append(svg.dot(x(row.value), at, f"dot {row.cls}"))
    shapes.insert(0, svg.segment(x(0), TOP, x(0), bottom, "zero"))
    shapes += _value_axis(x, reach, bottom, x_name)
    told = "; ".join(f"{r.name} {number(r.value)} from {number(r.low)} to {number(r.high)}" for r in rows)
    return svg.figure(WIDTH, bottom + 40, title, told or "no data", shapes)


def _value_axis(x: Scale, reach: float, bottom: float, name: str) -> list[Markup]:
    step = _nice(reach / 2.9)
    ticks = [i * step for i in range(-2, 3) if abs(i * step) <= reach]
    shapes = [svg.segment(x.start, bottom, x.end, bottom, "axis")]
    shapes += [svg.label(x(t), bottom + 16, ("+" if t > 0 else "") + number(t), anchor="middle") for t in ticks]
    return [*shapes, svg.label((x.start + x.end) / 2, bottom + 33, name, "axis-name", "middle")]


def _fit(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def price_panel(rows: Sequence[PriceRow], budget: float) -> Markup:
    """Steps to breach per model: a dot with its probe interval, or an arrow leaving the chart when none was seen."""
    width, left, right, height = 430.0, 142.0, 366.0, 26
    x = Scale(0, max([budget, 1.0, *(r.at or r.low for r in rows)]), left, right, log=True)
    bottom = TOP + height * len(rows)
    shapes = []
    for tick in svg.step_ticks(int(x.high)):
        shapes.append(svg.segment(x(tick), TOP, x(tick), bottom, "grid"))
        shapes.append(svg.label(x(tick), bottom + 17, f"{tick:,}", anchor="middle"))
    for i, row in enumerate(rows):
        at = TOP + height * i + height / 2
        shapes.append(svg.label(left - 12, at + 4, _fit(row.name, 21), "row-name", "end"))
        shapes += _price_shapes(row, at, x)
    shapes.append(svg.segment(left, bottom, right, bottom, "axis"))
    shapes.append(
        svg.label((left + right) / 2, bottom + 36, "attack steps to the cheapest breach", "axis-name", "middle")
    )
    told = "; ".join(
        f"{r.name}: no breach within {number(r.low)}" if r.at is None else f"{r.name}: {number(r.at)}" for r in rows
    )
    return svg.figure(width, bottom + 44, "Steps to the cheapest breach", told, shapes)


def _price_shapes(row: PriceRow, y: float, x: Scale) -> list[Markup]:
    if row.at is not None:
        whisker = svg.segment(x(row.low), y, x(row.at), y, f"whisker {row.cls}")
        return [whisker, svg.dot(x(row.at), y, f"dot {row.cls}", 5)]
    start, end = x(row.low), x(row.low) + 40
    return [
        svg.line([(start, y), (end, y)], f"line {row.cls}"),
        svg.line([(end - 7, y - 5), (end, y), (end - 7, y + 5)], f"line solid {row.cls}"),
        svg.segment(start, y - 6, start, y + 6, f"whisker {row.cls}"),
    ]


def scatter(title: str, spots: Sequence[Spot], x_name: str, y_name: str) -> Markup:
    """Models by stability (x) and resistance (y, log(1 + value)); whiskers are 95% intervals, an arrow is a bound."""
    width, height, left, right, bottom = 480.0, 320.0, 44.0, 460.0, 268.0
    values = [0.0, *(v for s in spots for v in (s.x, *(s.x_range or ())))]
    pad = max((max(values) - min(values)) * 0.15, 0.02)
    x = Scale(min(values) - pad, max(values) + pad, left, right)
    top = max([1.0, *(v for s in spots for v in (s.y, *(s.y_range or ())))]) * 1.6
    y = Scale(0, top, bottom, 26, log=True)
    shapes = [svg.segment(left, bottom, right, bottom, "axis"), svg.segment(x(0), 26, x(0), bottom, "zero")]
    for tick in svg.step_ticks(int(top))[:-1]:
        shapes.append(svg.segment(left, y(tick), right, y(tick), "grid"))
        shapes.append(svg.label(left - 8, y(tick) + 4, f"{tick:,}", anchor="end"))
    step = _nice((x.high - x.low) / 5)
    for i in range(int(x.low / step), int(x.high / step) + 1):
        shapes.append(svg.label(x(i * step), bottom + 18, ("+" if i > 0 else "") + number(i * step), anchor="middle"))
    for spot in spots:
        shapes += _spot(spot, x, y)
    shapes.append(svg.label((left + right) / 2, bottom + 40, x_name, "axis-name", "middle"))
    shapes.append(svg.label(left - 30, 14, y_name, "axis-name"))
    told = "; ".join(f"{s.name}: {number(s.x)}, {'at least ' if s.bound else ''}{number(s.y)}" for s in spots)
    return svg.figure(width, height, title, told, shapes)


def _nice(least: float) -> float:
    """The smallest round step that is no smaller than `least`."""
    return next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 1e9) if s >= least)


def _spot(spot: Spot, x: Scale, y: Scale) -> list[Markup]:
    at, up = x(spot.x), y(spot.y)
    shapes = []
    if spot.x_range:
        shapes.append(svg.segment(x(spot.x_range[0]), up, x(spot.x_range[1]), up, f"whisker {spot.cls}"))
    if spot.y_range:
        shapes.append(svg.segment(at, y(spot.y_range[0]), at, y(spot.y_range[1]), f"whisker {spot.cls}"))
    if spot.bound:
        shapes.append(svg.line([(at, up), (at, up - 22)], f"line {spot.cls}"))
        shapes.append(svg.line([(at - 4, up - 16), (at, up - 22), (at + 4, up - 16)], f"line {spot.cls}"))
    left = at > (x.start + x.end) / 2
    name = svg.label(
        at - 10 if left else at + 10, up - 9, _fit(spot.name, 28), "spot-name", "end" if left else "start"
    )
    return [*shapes, svg.dot(at, up, f"dot {spot.cls}", 5), name]
