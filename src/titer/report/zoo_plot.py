"""The zoo's Pareto plot: what a breach costs against what the defence cost the model, as a standalone SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from titer.report import svg
from titer.report.cells import number
from titer.report.svg import Scale

WIDTH, HEIGHT = 820.0, 470.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 590.0, 24.0, 410.0
APART = 15.0  # pixels between two labels
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.tick{fill:#666;font-size:11px}.axis{stroke:#888}"
    ".grid{stroke:#e4e4e4}.zero{stroke:#aaa;stroke-dasharray:4 3}.whisker{stroke:#9ab;stroke-width:1.5}"
    ".tie{stroke:#bbb;stroke-width:.8}.defence{fill:#2b6cb0}.control{fill:#c05621}.up{fill:none;stroke:#2b6cb0}"
    ".number{font-size:11px;font-weight:600}"
)


@dataclass(frozen=True, slots=True)
class Spot:
    """One model: change in ability (x) and cost ratio (y) with 95% intervals; `bound`: the ratio is a lower bound."""

    number: int
    name: str
    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    bound: bool = False
    control: bool = False


def plot(spots: Sequence[Spot]) -> str:
    """The drawing, with every model's number at its spot and the names beside it."""
    xs = [0.0, 0.05, *(v for s in spots for v in (s.x, *s.x_range))]
    x = Scale(min(xs) - 0.03, max(xs) + 0.03, LEFT, RIGHT)
    ys = [2.0, *(v for s in spots for v in (s.y, *s.y_range))]
    y = Scale(0, max(ys) * 1.5, BOTTOM, TOP, log=True)
    shapes = [Markup("<style>{}</style>").format(Markup(STYLE))]  # the class names are ours
    shapes.append(Markup('<rect width="{:g}" height="{:g}" fill="#fff"/>').format(WIDTH, HEIGHT))
    shapes += _axes(x, y)
    for spot in spots:
        shapes += _mark(spot, x, y)
    places = spread([(x(s.x) + 9, y(s.y) - 6) for s in spots])
    for spot, (a, b) in zip(spots, places, strict=True):
        shapes.append(svg.segment(x(spot.x), y(spot.y), a, b - 3, "tie"))
        shapes.append(svg.label(a, b, str(spot.number), "number"))
    for row, spot in enumerate(sorted(spots, key=lambda s: s.number)):
        shapes.append(svg.label(RIGHT + 34, TOP + 6 + 16 * row, f"{spot.number:>2}  {spot.name}"))
    told = "; ".join(f"{s.name}: {number(s.x)}, {'at least ' if s.bound else ''}{number(s.y)} times" for s in spots)
    drawing = str(svg.figure(WIDTH, HEIGHT, "Resistance against stability", told, shapes))
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _axes(x: Scale, y: Scale) -> list[Markup]:
    shapes = [svg.segment(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"), svg.segment(LEFT, TOP, LEFT, BOTTOM, "axis")]
    for tick in (t for t in svg.STEP_TICKS if t <= y.high):
        shapes.append(svg.segment(LEFT, y(tick), RIGHT, y(tick), "zero" if tick == 1 else "grid"))
        shapes.append(svg.label(LEFT - 8, y(tick) + 4, f"{tick:,}×", anchor="end"))
    for k in range(-10, 11):
        value = k / 10
        if x.low <= value <= x.high:
            shapes.append(svg.segment(x(value), TOP, x(value), BOTTOM, "zero" if k == 0 else "grid"))
            shapes.append(svg.label(x(value), BOTTOM + 16, f"{'+' if k > 0 else ''}{number(value)}", anchor="middle"))
    across, up = "change of the worst probe set before any attack", "cost to breach ÷ undefended"
    shapes.append(svg.label((LEFT + RIGHT) / 2, BOTTOM + 38, across, "name", "middle"))
    return [*shapes, svg.label(8, 14, up, "name")]


def _mark(spot: Spot, x: Scale, y: Scale) -> list[Markup]:
    at, up = x(spot.x), y(spot.y)
    shapes = [svg.segment(x(spot.x_range[0]), up, x(spot.x_range[1]), up, "whisker")]
    if spot.bound:
        shapes.append(svg.line([(at, up), (at, up - 18), (at - 4, up - 12), (at, up - 18), (at + 4, up - 12)], "up"))
    else:
        shapes.append(svg.segment(at, y(spot.y_range[0]), at, y(spot.y_range[1]), "whisker"))
    return [*shapes, svg.dot(at, up, "control" if spot.control else "defence", 4)]


def spread(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places moved apart until no two are closer than APART pixels (or 200 rounds are over)."""
    found = [list(p) for p in places]
    for _ in range(200):
        moved = False
        for i, a in enumerate(found):
            for b in found[:i]:
                gap = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5
                if gap < APART:
                    moved = True
                    dx, dy = ((a[0] - b[0]) / gap, (a[1] - b[1]) / gap) if gap > 0.01 else (0.6, -0.8)
                    push = (APART - gap) / 2 + 0.1
                    a[0], a[1], b[0], b[1] = a[0] + dx * push, a[1] + dy * push, b[0] - dx * push, b[1] - dy * push
        if not moved:
            break
    return [(a, max(b, TOP)) for a, b in found]
