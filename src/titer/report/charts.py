"""Every chart of the pages as SVG: shapes, then lines with bands, intervals against a margin, shares, a scatter.

Everything is escaped; colours and fonts are classes, so that the page decides light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot, log1p

from markupsafe import Markup

from titer.report.cells import number, signed
from titer.report.untrusted import visible

Points = Sequence[tuple[float, float]]
STEP_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] to pixels [start, end]; `log` maps log(1 + value), so that step 0 has a place."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (log1p(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        span = (high - low) or 1.0
        return self.start + (self.end - self.start) * (at - low) / span


def path_data(points: Points) -> str:
    """`M x,y L x,y ...` with one decimal."""
    return " ".join(f"{'L' if i else 'M'}{x:.1f},{y:.1f}" for i, (x, y) in enumerate(points))


def line(points: Points, cls: str) -> Markup:
    """An open polyline."""
    return Markup('<path class="{}" d="{}"/>').format(cls, path_data(points))


def area(lower: Points, upper: Points, cls: str) -> Markup:
    """A band between two polylines over the same x."""
    return Markup('<path class="{}" d="{} Z"/>').format(cls, path_data([*upper, *reversed(lower)]))


def segment(x1: float, y1: float, x2: float, y2: float, cls: str) -> Markup:
    """A straight line."""
    made = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return made.format(cls, x1, y1, x2, y2)


def rect(x: float, y: float, width: float, height: float, cls: str) -> Markup:
    """A rectangle; negative sizes become zero."""
    made = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return made.format(cls, x, y, max(width, 0), max(height, 0))


def dot(x: float, y: float, cls: str, radius: float = 4) -> Markup:
    """A circle."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>').format(cls, x, y, radius)


def breach_mark(x: float, y: float, cls: str) -> Markup:
    """A cross: the field's mark for an event on a curve."""
    return line([(x - 4, y - 4), (x + 4, y + 4)], cls) + line([(x - 4, y + 4), (x + 4, y - 4)], cls)


def label(x: float, y: float, text: str, cls: str = "tick", anchor: str = "start") -> Markup:
    """Text; `anchor` is start, middle or end."""
    made = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return made.format(cls, x, y, anchor, visible(text))


def figure(width: float, height: float, title: str, description: str, shapes: Sequence[Markup]) -> Markup:
    """A whole drawing with a name and a description for those who do not see it."""
    made = Markup(
        '<svg viewBox="0 0 {:g} {:g}" role="img" preserveAspectRatio="xMidYMid meet">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    )
    return made.format(width, height, visible(title), visible(description), Markup("").join(shapes))


def step_ticks(last: int) -> list[int]:
    """The probe steps up to `last`, which is always among them."""
    ticks = [t for t in STEP_TICKS if t < last * 0.75]
    return [*ticks, last] if last > 0 else [0]


# ------------------------------------------------------------------------------------------------------------- charts

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
        shapes.append(segment(LEFT, y(threshold), RIGHT, y(threshold), "threshold"))
        shapes.append(label(LEFT + 4, y(threshold) - 4, f"φ = {number(threshold)}", "tick"))
    for one in lines:
        if one.lower:
            shapes.append(area(_scaled(one.lower, x, y), _scaled(one.upper, x, y), f"band {one.cls}"))
    for one in lines:
        shapes += [line(_scaled(trace, x, y), f"trace {one.cls}") for trace in one.traces]
        shapes.append(line(_scaled(one.points, x, y), f"line {one.cls}"))
        shapes += [breach_mark(px, py, f"mark {one.cls}") for px, py in _scaled(one.marks, x, y)]
    ends = "; ".join(f"{one.name} ends at {number(one.points[-1][1])}" for one in lines if one.points)
    return figure(WIDTH, HEIGHT, f"{y_name} against attack steps, {title}", ends or "no data", shapes)


def _scaled(points: Points, x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(px), y(min(max(py, 0), 1))) for px, py in points]


def _unit_axis(y: Scale) -> list[Markup]:
    shapes = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        shapes.append(segment(LEFT, y(value), RIGHT, y(value), "axis" if value == 0 else "grid"))
        shapes.append(label(LEFT - 6, y(value) + 4, f"{value:g}", anchor="end"))
    return shapes


def _step_axis(x: Scale, last: int, name: str = "steps") -> list[Markup]:
    shapes = []
    for tick in step_ticks(last):
        shapes.append(segment(x(tick), BOTTOM, x(tick), BOTTOM + 4, "axis"))
        shapes.append(label(x(tick), BOTTOM + 17, f"{tick:,}", anchor="middle"))
    return [*shapes, label((LEFT + RIGHT) / 2, BOTTOM + 34, name, "axis-name", "middle")]


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
        shapes.append(area(lower, upper, f"layer {layer.cls}"))
        base = top
    ends = "; ".join(f"{layer.name} {layer.counts[-1] / totals[-1]:.0%}" for layer in layers) if steps else "no data"
    shapes += _step_axis(x, max([*steps, 0]))
    return figure(WIDTH, HEIGHT, f"Outcomes along the attack, {title}", f"At the end: {ends}", shapes)


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
            shapes.append(rect(x(row.margin[0]), at - 11, x(row.margin[1]) - x(row.margin[0]), 22, "zone"))
        shapes.append(label(left - 8, at + 4, _fit(row.name, 19), "row-name", "end"))
        shapes.append(segment(x(row.low), at, x(row.high), at, f"whisker {row.cls}"))
        shapes.append(dot(x(row.value), at, f"dot {row.cls}"))
    shapes.insert(0, segment(x(0), TOP, x(0), bottom, "zero"))
    shapes += _value_axis(x, reach, bottom, x_name)
    told = "; ".join(f"{r.name} {number(r.value)} from {number(r.low)} to {number(r.high)}" for r in rows)
    return figure(WIDTH, bottom + 40, title, told or "no data", shapes)


def _value_axis(x: Scale, reach: float, bottom: float, name: str) -> list[Markup]:
    step = _nice(reach / 2.9)
    ticks = [i * step for i in range(-2, 3) if abs(i * step) <= reach]
    shapes = [segment(x.start, bottom, x.end, bottom, "axis")]
    shapes += [label(x(t), bottom + 16, ("+" if t > 0 else "") + number(t), anchor="middle") for t in ticks]
    return [*shapes, label((x.start + x.end) / 2, bottom + 33, name, "axis-name", "middle")]


def _fit(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def price_panel(rows: Sequence[PriceRow], budget: float) -> Markup:
    """Steps to breach per model: a dot with its probe interval, or an arrow leaving the chart when none was seen."""
    width, left, right, height = 430.0, 142.0, 366.0, 26
    x = Scale(0, max([budget, 1.0, *(r.at or r.low for r in rows)]), left, right, log=True)
    bottom = TOP + height * len(rows)
    shapes = []
    for tick in step_ticks(int(x.high)):
        shapes.append(segment(x(tick), TOP, x(tick), bottom, "grid"))
        shapes.append(label(x(tick), bottom + 17, f"{tick:,}", anchor="middle"))
    for i, row in enumerate(rows):
        at = TOP + height * i + height / 2
        shapes.append(label(left - 12, at + 4, _fit(row.name, 21), "row-name", "end"))
        shapes += _price_shapes(row, at, x)
    shapes.append(segment(left, bottom, right, bottom, "axis"))
    shapes.append(label((left + right) / 2, bottom + 36, "attack steps to the cheapest breach", "axis-name", "middle"))
    told = "; ".join(
        f"{r.name}: no breach within {number(r.low)}" if r.at is None else f"{r.name}: {number(r.at)}" for r in rows
    )
    return figure(width, bottom + 44, "Steps to the cheapest breach", told, shapes)


def _price_shapes(row: PriceRow, y: float, x: Scale) -> list[Markup]:
    if row.at is not None:
        whisker = segment(x(row.low), y, x(row.at), y, f"whisker {row.cls}")
        return [whisker, dot(x(row.at), y, f"dot {row.cls}", 5)]
    start, end = x(row.low), x(row.low) + 40
    return [
        line([(start, y), (end, y)], f"line {row.cls}"),
        line([(end - 7, y - 5), (end, y), (end - 7, y + 5)], f"line solid {row.cls}"),
        segment(start, y - 6, start, y + 6, f"whisker {row.cls}"),
    ]


def _nice(least: float) -> float:
    """The smallest round step that is no smaller than `least`."""
    return next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 1e9) if s >= least)


# ------------------------------------------------------------------------------------------------------------ scatter


@dataclass(frozen=True, slots=True)
class Spot:
    """One model in a scatter, with its interval on each axis where known; `bound` draws an arrow upwards.

    A spot with a `number` carries that instead of its name.
    """

    name: str
    cls: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    bound: bool = False
    number: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """The size of a scatter and the edges of its axes, in pixels; names of numbered spots stand right of it."""

    width: float = 480.0
    height: float = 320.0
    left: float = 44.0
    right: float = 460.0
    top: float = 26.0
    bottom: float = 268.0


APART = 15.0  # pixels between two labels


def scatter(
    title: str, spots: Sequence[Spot], x_name: str, y_name: str, frame: Frame = Frame(), unit: str = ""
) -> Markup:
    """Models by stability (x) and resistance (y, log(1 + value)); whiskers are 95% intervals, an arrow is a bound."""
    x, y = _scales(spots, frame)
    shapes = [*_scatter_y(x, y, frame, y_name, unit), *_scatter_x(x, y, frame, x_name)]
    for spot in spots:
        shapes += _spot(spot, x, y)
    for spot, (across, up) in zip(spots, spread([(x(s.x) + 10, y(s.y) - 9) for s in spots], frame.top), strict=True):
        shapes += _spot_label(spot, x(spot.x), y(spot.y), across, up, frame)
    numbered = sorted((s for s in spots if s.number), key=lambda s: s.number)
    for row, spot in enumerate(numbered):
        shapes.append(label(frame.right + 34, frame.top + 6 + 16 * row, f"{spot.number:>2}  {spot.name}"))
    told = "; ".join(f"{s.name}: {number(s.x)}, {'at least ' if s.bound else ''}{number(s.y)}{unit}" for s in spots)
    return figure(frame.width, frame.height, title, told, shapes)


def _scales(spots: Sequence[Spot], frame: Frame) -> tuple[Scale, Scale]:
    xs = [0.0, *(v for s in spots for v in (s.x, *(s.x_range or ())))]
    ys = [1.0, *(v for s in spots for v in (s.y, *(s.y_range or ())))]
    pad = max((max(xs) - min(xs)) * 0.15, 0.02)
    across = Scale(min(xs) - pad, max(xs) + pad, frame.left, frame.right)
    return across, Scale(0, max(ys) * 1.6, frame.bottom, frame.top, log=True)


def _scatter_y(x: Scale, y: Scale, frame: Frame, name: str, unit: str) -> list[Markup]:
    shapes = [segment(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for tick in (t for t in STEP_TICKS if t <= y.high):
        cls = "zero" if unit and tick == 1 else "grid"  # one times as dear is no dearer
        shapes.append(segment(frame.left, y(tick), frame.right, y(tick), cls))
        shapes.append(label(frame.left - 8, y(tick) + 4, f"{tick:,}{unit}", anchor="end"))
    return [*shapes, label(frame.left - 34, 14, name, "axis-name")]


def _scatter_x(x: Scale, y: Scale, frame: Frame, name: str) -> list[Markup]:
    shapes = [segment(x(0), frame.top, x(0), frame.bottom, "zero")]
    step = _nice((x.high - x.low) / 5)
    for i in range(int(x.low / step), int(x.high / step) + 1):
        shapes.append(label(x(i * step), frame.bottom + 18, signed(i * step), anchor="middle"))
    return [*shapes, label((frame.left + frame.right) / 2, frame.bottom + 40, name, "axis-name", "middle")]


def _spot(spot: Spot, x: Scale, y: Scale) -> list[Markup]:
    at, up = x(spot.x), y(spot.y)
    shapes = []
    if spot.x_range:
        shapes.append(segment(x(spot.x_range[0]), up, x(spot.x_range[1]), up, f"whisker {spot.cls}"))
    if spot.y_range and not spot.bound:
        shapes.append(segment(at, y(spot.y_range[0]), at, y(spot.y_range[1]), f"whisker {spot.cls}"))
    if spot.bound:
        shapes.append(line([(at, up), (at, up - 22)], f"line {spot.cls}"))
        shapes.append(line([(at - 4, up - 16), (at, up - 22), (at + 4, up - 16)], f"line {spot.cls}"))
    return [*shapes, dot(at, up, f"dot {spot.cls}", 5)]


def _spot_label(spot: Spot, at: float, up: float, across: float, high: float, frame: Frame) -> list[Markup]:
    if spot.number:
        return [segment(at, up, across, high - 3, "tie"), label(across, high, str(spot.number), "number")]
    if at > (frame.left + frame.right) / 2:
        return [label(at - (across - at), high, _fit(spot.name, 28), "spot-name", "end")]
    return [label(across, high, _fit(spot.name, 28), "spot-name")]


def spread(places: Sequence[tuple[float, float]], top: float = 0.0) -> list[tuple[float, float]]:
    """The places moved apart until no two are closer than APART pixels (or 200 rounds are over), none above `top`."""
    found = [list(p) for p in places]
    for _ in range(200):
        pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
        if not any([_push(a, b) for a, b in pairs]):  # a list: every pair is pushed
            break
    return [(a, max(b, top)) for a, b in found]


def _push(a: list[float], b: list[float]) -> bool:
    """Two places moved away from each other where they are too close; whether they were."""
    gap = hypot(a[0] - b[0], a[1] - b[1])
    if gap >= APART:
        return False
    dx, dy = ((a[0] - b[0]) / gap, (a[1] - b[1]) / gap) if gap > 0.01 else (0.6, -0.8)
    by = (APART - gap) / 2 + 0.1
    a[0], a[1], b[0], b[1] = a[0] + dx * by, a[1] + dy * by, b[0] - dx * by, b[1] - dy * by
    return True
