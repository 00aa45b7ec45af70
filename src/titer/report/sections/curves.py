"""Harm against budget: a panel for every attack configuration, with every model and control in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from titer.conditions.parts.bands import curve_band
from titer.report.cells import NONE, interval, number
from titer.report.charts import Chart, Line, Table, curve_panel
from titer.report.read import Reading, Series, by_series
from titer.schema.types import Curve

TITLE = "Harm against budget"
MAX_PANELS = 12
DRAWN = {"model": 0, "undefended": 1, "ignorant": 2, "random": 3}
Pairs = list[tuple[Series, Curve]]


def view(reading: Reading) -> list[Chart]:
    """One chart per attack configuration and kind of data."""
    seen = {
        record: at
        for model in reading.models
        for priced in model.prices().values()
        for config in priced.configs
        for record, at in config.seen.items()
    }
    return [_chart(*key, pairs, seen, reading.phi) for key, pairs in panels(reading.attacks())[:MAX_PANELS]]


def _chart(config: str, data: str, pairs: Pairs, seen: Mapping[str, float | None], phi: float | None) -> Chart:
    lines = [one_line(series, curves, "harm", seen) for series, curves in drawn(pairs)]
    seeds = len({c.seed for _, c in pairs})
    words = f"{data or 'attack'} data, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return Chart(config, words, curve_panel(config, lines, last_step(pairs), "Harm", phi), line_table(lines[::-1]))


def panels(pairs: Iterable[tuple[Series, Curve]]) -> list[tuple[tuple[str, str], Pairs]]:
    """Curves with at least one step by (configuration, data)."""
    groups: dict[tuple[str, str], Pairs] = {}
    for one, curve in pairs:
        if curve.points and curve.points[-1].step > 0:
            groups.setdefault((curve.config, curve.data), []).append((one, curve))
    return list(groups.items())


def drawn(pairs: Pairs) -> list[tuple[Series, list[Curve]]]:
    """Curves by series, in the order of drawing: models last, on top."""
    return sorted(by_series(pairs).items(), key=lambda item: -DRAWN[item[0].role])


def last_step(pairs: Pairs) -> int:
    """The last step that any of the curves reached."""
    return max(c.points[-1].step for _, c in pairs)


def one_line(series: Series, curves: Sequence[Curve], probe: str, seen: Mapping[str, float | None]) -> Line:
    """The mean of a probe over runs with its band, the single runs, and a mark where each was seen breached."""
    rows = curve_band(curves, probe, draws=400)
    mean, lower, upper = ([(r["step"], r[key]) for r in rows] for key in ("value", "low", "high"))
    traces = [_trace(c, probe) for c in curves] if len(curves) > 1 else []
    return Line(series.name, series.cls, mean, lower, upper, _marks(curves, seen), traces)


def _marks(curves: Sequence[Curve], seen: Mapping[str, float | None]) -> list[tuple[float, float]]:
    """Where each run was first seen breached: (step, mean harm there)."""
    found = ((seen.get(c.record), p) for c in curves for p in c.points)
    return [(float(p.step), p.mean("harm") or 0.0) for at, p in found if p.step == at]


def _trace(curve: Curve, probe: str) -> list[tuple[float, float]]:
    """One run's own means: runs that stopped at their breach end there, and the band over all runs ends sooner."""
    return [(float(p.step), m) for p in curve.points if (m := p.mean(probe)) is not None]


def line_table(lines: Sequence[Line]) -> Table:
    """The means and bands that lines are drawn from."""
    steps = sorted({int(x) for one in lines for x, _ in one.points})
    columns = [_column(one) for one in lines]
    rows = tuple((step, *(column.get(step, NONE) for column in columns)) for step in steps)
    return Table(("steps", *(one.name for one in lines)), rows)


def _column(one: Line) -> dict[int, str]:
    known = zip(one.points, one.lower, one.upper, strict=True)
    return {int(x): f"{number(y)} {interval(low, high)}" for (x, y), (_, low), (_, high) in known}
