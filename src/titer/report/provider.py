"""The report of the API threat model: HS and FA per guard and poison ratio. Never mixed with open-weights results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from titer.report.cells import Cell, Rows, estimate_cell, number
from titer.report.charts import Chart, Scale, Table, dot, figure, label, segment
from titer.report.read import COLOURS, Model, Reading, Result, Series, estimate, short
from titer.schema.errors import TiterError
from titer.schema.types import Curve, from_json

CONTROL = "none"
METRICS = {"hs": "HS, harmful score", "fa": "FA, fine-tune accuracy"}
Json = Mapping[str, Any]


def is_api(results: Sequence[Result]) -> bool:
    """Whether results are of this threat model; `TiterError` when only some are."""
    kinds = {r.get("threat_model") == "api" for r in results}
    if len(kinds) > 1:
        raise TiterError("report: open-weights and API results do not go into one report: a guard says nothing there")
    return kinds == {True}


def view(results: Sequence[Result]) -> dict[str, Any]:
    """Everything on the page but its runs."""
    first = results[0]
    guards = {g["config"]: g for r in results for g in r["guards"].values()}
    return {
        "names": [short(str(r["model"])) for r in results],
        "task": first["task"],
        "created": str(first.get("created") or ""),
        "control": CONTROL,
        "sentences": [said for r in results for said in sentences(r)],
        "metrics": [table for r in results for table in _metrics(r)],
        "differences": [table for r in results for table in _differences(r)],
        "charts": [chart for r in results for chart in _charts(r)],
        "guards": list(guards.values()),
        "diverged": sum(len(row["diverged"]) for r in results for row in r["rows"]),
    }


def reading(results: Sequence[Result]) -> Reading:
    """The stored curves, each under its guard."""
    pairs: list[tuple[Series, Curve]] = []
    for result in results:
        known = list(result["guards"])
        owner = {rec: row["guard"] for row in result["rows"] for rec in row["hs"]["records"] + row["diverged"]}
        for curve in result["curves"]:
            guard = owner.get(curve["record"], CONTROL)
            one = Series(f"{short(str(result['model']))}, {guard}", "model", f"m{known.index(guard) % COLOURS}")
            pairs.append((one, from_json(Curve, curve)))
    models = tuple(Model(result, index) for index, result in enumerate(results))
    return Reading(models, tuple(dict.fromkeys(s for s, _ in pairs)), tuple(pairs))


def sentences(result: Result) -> Iterator[str]:
    """What to remember, one sentence a ratio: which guards lower HS beyond the interval, and which of them cost FA."""
    model, guards = short(str(result["model"])), _by_guard(result)
    if list(guards) == [CONTROL]:
        return
    for ratio in _ratios(result):
        rows = {g: by[ratio] for g, by in guards.items() if ratio in by and g != CONTROL}
        lower = [g for g, row in rows.items() if _falls(row["hs_difference"])]
        dear = [g for g in lower if _falls(rows[g]["fa_difference"])]
        free = [g for g in lower if g not in dear]
        said = [f"{', '.join(free)} at no measurable cost in FA"] if free else []
        said += [f"{', '.join(dear)} at a cost in FA"] if dear else []
        what = f"HS is measurably lower with {'; with '.join(said)}" if said else "no guard lowers HS measurably"
        yield f"{model}, poison ratio {ratio:g}: {what}."


def _falls(difference: Json) -> bool:
    return difference["high"] is not None and difference["high"] < 0


def _ratios(result: Result) -> list[float]:
    return sorted({row["ratio"] for row in result["rows"]})


def _by_guard(result: Result) -> dict[str, dict[float, Json]]:
    found: dict[str, dict[float, Json]] = {}
    for row in result["rows"]:
        found.setdefault(row["guard"], {})[row["ratio"]] = row
    return found


def _metrics(result: Result) -> Iterator[Rows]:
    """One table a metric: guards in rows, before the tune and each ratio in columns."""
    ratios, guards = _ratios(result), _by_guard(result)
    for key, title in METRICS.items():
        columns = ("Guard", "before", *(f"p = {r:g}" for r in ratios))
        rows = tuple(
            (guard, (_start(row, key), *(_cell(row.get(r), key) for r in ratios))) for guard, row in guards.items()
        )
        yield Rows(f"{short(str(result['model']))}: {title}", columns, rows)


def _start(rows: Mapping[float, Json], key: str) -> Cell:
    return _cell(next(iter(rows.values())), f"{key}_start")


def _cell(row: Json | None, key: str) -> Cell:
    return estimate_cell(estimate(row.get(key)) if row else None)


def _differences(result: Result) -> Iterator[Rows]:
    ratios = _ratios(result)
    guards = {g: rows for g, rows in _by_guard(result).items() if g != CONTROL}
    for key, title in METRICS.items() if guards else ():
        columns = ("Guard", *(f"p = {r:g}" for r in ratios))
        body = tuple(
            (guard, tuple(_cell(row.get(r), f"{key}_difference") for r in ratios)) for guard, row in guards.items()
        )
        yield Rows(f"{short(str(result['model']))}: change of {title}", columns, body)


# ------------------------------------------------------------------------------------------------------------ charts


def _charts(result: Result) -> Iterator[Chart]:
    """A panel per ratio: both metrics of every guard with their intervals."""
    for ratio in _ratios(result):
        rows = [(g, by[ratio]) for g, by in _by_guard(result).items() if ratio in by]
        title = f"Poison ratio {ratio:g}"
        table = Table(
            ("guard", "HS", "95%", "FA", "95%"),
            tuple((g, *(v for k in METRICS for v in (number(r[k]["value"]), _span(r[k])))) for g, r in rows),
        )
        seeds = len(rows[0][1]["hs"]["seeds"])
        caption = f"{short(str(result['model']))}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
        yield Chart(title, caption, _panel(title, rows), table)


def _span(estimate: Json) -> str:
    return f"[{number(estimate['low'])}, {number(estimate['high'])}]"


def _panel(title: str, rows: Sequence[tuple[str, Json]]) -> Markup:
    left, right, top, height = 132.0, 348.0, 12.0, 30.0
    x, bottom = Scale(0, 1, left, right), top + height * len(rows)
    shapes = [segment(x(t), top, x(t), bottom, "grid") for t in (0, 0.25, 0.5, 0.75, 1)]
    for i, (guard, row) in enumerate(rows):
        at = top + height * (i + 0.5)
        shapes.append(label(left - 10, at + 4, guard, "row-name", "end"))
        for key, cls, y in (("hs", "m4", at - 5), ("fa", "m0", at + 5)):
            e = row[key]
            if e["value"] is not None:
                shapes.append(segment(x(e["low"]), y, x(e["high"]), y, f"whisker {cls}"))
                shapes.append(dot(x(e["value"]), y, f"dot {cls}"))
    shapes.append(segment(left, bottom, right, bottom, "axis"))
    shapes += [label(x(t), bottom + 16, f"{t:g}", anchor="middle") for t in (0, 0.5, 1)]
    told = "; ".join(f"{g}: HS {number(r['hs']['value'])}, FA {number(r['fa']['value'])}" for g, r in rows)
    return figure(360, bottom + 26, title, told, shapes)
