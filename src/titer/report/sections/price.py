"""What a breach takes: the price of every model and control, by attack configuration, and what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from titer.report.cells import ARROW, NONE, Cell, Rows, estimate_cell, interval, number
from titer.report.charts import PriceRow, price_panel
from titer.report.read import CONTROLS, Config, Found, Model, Priced, Reading

TITLE = "Cost to breach"
TINY = 0.01  # dollars: less than this in every row is not worth a column
UNITS = {"steps": "Steps, worst seed", "tokens": "Tokens", "flops": "FLOPs", "usd": "Dollars"}


@dataclass(frozen=True, slots=True)
class Price:
    """A row of the table: a model or control, its cells, and the probes around its cheapest breach in steps."""

    name: str
    cls: str
    cells: tuple[Cell, ...]
    low: float | None
    at: float | None


@dataclass(frozen=True, slots=True)
class Prices:
    """The table with its chart, what every configuration cost by model, and what `titer search` found."""

    columns: tuple[str, ...]
    rows: tuple[Price, ...]
    chart: Markup | None
    configurations: list[tuple[str, Rows]]
    searches: list[tuple[Rows, str]]


def view(reading: Reading) -> Prices | None:
    """Prices; None when resistance was not measured and nothing was searched."""
    found, searched = _rows(reading.models), searches(reading.models)
    if not found and not searched:
        return None
    units = [u for u in UNITS if u != "usd" or any(_dollars(p) for _, _, p in found)]
    rows = tuple(_price(name, cls, priced, units) for name, cls, priced in found)
    columns = ("Price", "Runs breached", *(UNITS[u] for u in units), "Steps, median")
    spots = [PriceRow(p.name, p.cls, p.low, p.at) for p in rows if p.low is not None]
    chart = price_panel(spots, reading.budget or 0.0) if spots else None
    return Prices(columns, rows, chart, configurations(reading.models), searched)


def _rows(models: Sequence[Model]) -> list[tuple[str, str, Priced]]:
    """The undefended model, every model, the other controls, each once, as (name, class, price).

    Controls of models defended on different data were attacked with different data, and are told apart by it.
    """
    rows: dict[tuple[str, ...], tuple[str, str, Priced]] = {}
    several = len({m.data("defended") for m in models}) > 1
    for role in (CONTROLS[0], "model", *CONTROLS[1:]):
        for model in models:
            priced, data = model.prices().get(role), ", ".join(model.data("defended"))
            if priced and role == "model":
                rows[role, str(model.index)] = (model.name, model.cls, priced)
            elif priced:
                rows.setdefault((role, model.reference, data), (f"{role}, {data}" if several else role, role, priced))
    return list(rows.values())


def _dollars(priced: Priced) -> bool:
    """Whether a price in dollars is large enough to show."""
    found = priced.worst.get("usd")
    return found is not None and max(found.value or 0.0, found.low or 0.0) >= TINY


def _price(name: str, cls: str, priced: Priced, units: Sequence[str]) -> Price:
    times = Cell("1×") if cls == "undefended" else estimate_cell(priced.times)
    worst = tuple(estimate_cell(priced.worst.get(unit)) for unit in units)
    steps = priced.worst.get("steps")
    cells = (times, _share(priced), *worst, estimate_cell(priced.median))
    return Price(name, cls, cells, steps.low if steps else None, steps.value if steps else None)


def _share(priced: Priced) -> Cell:
    found = priced.breached
    if found is None or found.value is None or not found.n:
        return Cell(NONE)
    return Cell(f"{round(found.value * found.n)} of {found.n}", interval(found.low, found.high), records=found.records)


def configurations(models: Sequence[Model]) -> list[tuple[str, Rows]]:
    """By model: what every attack configuration cost to breach it and the undefended model, most breaches first."""
    found = []
    for model in models:
        prices = model.prices()
        if not prices or not prices["model"].configs:
            continue
        base = prices.get("undefended")
        theirs = {(c.name, c.data): c for c in (base.configs if base else ())}
        ordered = sorted(prices["model"].configs, key=lambda c: (-c.breached / c.runs, c.name))
        rows = tuple((f"{c.name}, {c.data} data", _cost(c, theirs.get((c.name, c.data)))) for c in ordered)
        columns = ("Attack", "Runs breached", "Steps, cheapest run", "Steps, median", "Undefended, cheapest run")
        found.append((model.name, Rows("", columns, rows)))
    return found


def _cost(config: Config, undefended: Config | None) -> tuple[Cell, ...]:
    return (
        Cell(f"{config.breached} of {config.runs}"),
        estimate_cell(config.worst),
        estimate_cell(config.median),
        estimate_cell(undefended.worst) if undefended else Cell(NONE),
    )


def searches(models: Sequence[Model]) -> list[tuple[Rows, str]]:
    """What `titer search` found, by model: both prices with the fresh seeds behind them, and how it went in words."""
    return [_search(m.name, found) for m in models if (found := m.search())]


def _search(name: str, found: Found) -> tuple[Rows, str]:
    spent = Cell(number(found.spent[found.unit], True), f"{number(found.spent['tokens'], True)} tokens")
    cells = (*_prices_found(found), spent, Cell(number(found.trials)))
    columns = ("Model", f"Oracle price, {found.unit}", "Cheapest run", "Search price", "All that was spent", "Trials")
    return Rows("", columns, ((name, cells),)), _how(name, found)


def _prices_found(found: Found) -> tuple[Cell, ...]:
    if not found.attack:
        none = Cell(ARROW, f"above {number(found.budget, True)} {found.unit}", spoken="no breach found")
        return (none, none, none)
    seeds = ", ".join(NONE if p is None else number(p, True) for p in found.replicates)
    return (
        Cell(number(found.oracle, True), f"fresh seeds: {seeds}", f"{len(found.replicates)} seeds"),
        Cell(number(found.cheapest, True)),
        Cell(number(found.price, True), f"{number(found.price_tokens, True)} tokens"),
    )


def _how(name: str, found: Found) -> str:
    end = f"It tried {found.attacks} attacks and stopped: {found.stopped}."
    if not found.attack:
        return f"{name}: no setting breached it within {number(found.budget, True)} {found.unit} a trial. {end}"
    options = (found.options or {}).items()
    chosen = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in options)
    runs = f" Runs: {', '.join(found.records)}." if found.records else ""
    return f"{name}: the cheapest setting was {found.attack}({chosen}). {end}{runs}"
