"""Values as readers see them: numbers, intervals, ratios, and the runs behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from titer.conditions.parts.proof import highest_rate
from titer.schema.types import Estimate, spec_id

MINUS, NONE, ARROW = "−", "–", "→"
_LARGE = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: Any, large: bool = False) -> str:
    """A number with about three significant digits; None is a dash; `large` uses k, M, G, T, P for 10,000 and more."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE if value is None else str(value)
    if not math.isfinite(value):
        return NONE
    size = abs(value)
    sign = MINUS if value < 0 else ""
    if 0 < size < 0.0005:
        return "0.00" if size < 1e-9 else f"{sign}{size:.0e}"
    if large and size >= 10_000:
        scale, suffix = next(pair for pair in _LARGE if size >= pair[0])
        return f"{sign}{size / scale:.3g}{suffix}"
    if float(size).is_integer() and size < 1e15:
        return f"{sign}{int(size):,}"
    if size >= 100:
        return f"{sign}{size:,.0f}"
    return f"{sign}{size:.2f}" if size >= 0.005 else f"{sign}{size:.1g}"


def interval(low: Any, high: Any, large: bool = False) -> str:
    """`[low, high]`; an unbounded end is written `∞` (high) or a dash (low)."""
    if low is None and high is None:
        return ""
    return f"[{number(low, large)}, {'∞' if high is None else number(high, large)}]"


def ratio(value: Any, bound: bool = False) -> str:
    """`12×`, or `≥ 12×` for a lower bound."""
    return NONE if value is None else f"{'≥ ' if bound else ''}{number(value)}×"


def run_anchor(record: str) -> str:
    """The page anchor of a run; ids that are not plain get a hash."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", record)
    return f"run-{record if plain else spec_id(record)}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as shown: the value in large, its interval and sample in small, and the runs it links to."""

    value: str
    interval: str = ""
    sample: str = ""
    spoken: str = ""
    records: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as shown: a caption, column names (the first names the rows) and rows of cells."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


PRICES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "examples": "examples"}
PRICES |= {"device_seconds": "s", "usd": "USD"}
TIMES = "x undefended"


def estimate_cell(found: Estimate | None) -> Cell:
    """An estimate as shown; prices (in steps, tokens, FLOPs) read as probe intervals or as `no breach`."""
    if found is None:
        return Cell(NONE, spoken="not measured")
    if found.unit in PRICES:
        return _price_cell(found)
    show = ratio if found.unit == TIMES else number
    if found.value is not None:
        return Cell(show(found.value), interval(found.low, found.high), _sample(found), "", found.records)
    told = found.low is not None and (found.low > 0 or found.unit != TIMES)  # at least 0 times as dear says nothing
    return Cell(f"≥ {show(found.low)}" if told else NONE, "", _sample(found), "", found.records)


def difference_cell(found: Estimate | None) -> Cell:
    """A difference in steps, model - reference: plus is slower; no value is a level the model never reached."""
    if found is None:
        return Cell(NONE, spoken="not measured")
    bounds, sample = interval(found.low, found.high), _sample(found)
    if found.value is None:
        words = "level not reached" if found.low is not None else NONE
        return Cell(words, bounds, sample, "", found.records)
    return Cell(f"{signed(found.value)} steps", bounds, sample, "", found.records)


def signed(value: float) -> str:
    """A number with its sign."""
    return f"{'+' if value > 0 else ''}{number(value)}"


def _price_cell(found: Estimate) -> Cell:
    word = PRICES[found.unit]
    sample = _sample(found) if found.unit == "steps" else ""
    if found.value is not None:
        ends = f"{number(found.low, True)}, {'∞' if found.high is None else number(found.high, True)}"
        bounds = f"({ends}]" if "(previous probe" in found.method else f"[{ends}]"
        return Cell(f"{number(found.value, True)} {word}", bounds, sample, "", found.records)
    if found.low is None:
        return Cell(NONE, sample=sample, spoken="not measured", records=found.records)
    at = f"{number(found.low, True)} {word}"
    bound = _rate_bound(found)
    return Cell(f"> {at} {ARROW}", bound, sample, f"no breach within {at}, {bound}".rstrip(", "), found.records)


def _rate_bound(found: Estimate) -> str:
    """What runs without a breach leave possible, told once: beside the steps."""
    if found.unit != "steps" or not found.n:
        return ""
    return f"breach rate below {number(highest_rate(found.n))}"


def _sample(found: Estimate) -> str:
    seeds = found.seeds
    parts = [f"n {number(found.n)}"] if found.n else []
    if seeds:
        run = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
        named = f"{seeds[0]}–{seeds[-1]}" if run else ", ".join(map(str, seeds))
        parts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {named}")
    return " · ".join(parts)


@dataclass
class Evidence:
    """Collects the sets of runs that numbers on the page rest on, in order of first use."""

    entries: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def anchor(self, records: Iterable[str] | None) -> str:
        """Where a number with these runs links to: the run itself, a listed set, or nowhere (empty string)."""
        ids = tuple(dict.fromkeys(str(r) for r in records or ()))
        if len(ids) <= 1:
            return run_anchor(ids[0]) if ids else ""
        name = f"runs-{spec_id(ids, 8)}"
        self.entries.setdefault(name, ids)
        return name
