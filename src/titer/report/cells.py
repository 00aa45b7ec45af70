"""Values as readers see them: numbers, intervals, ratios, and the runs behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from titer.schema.types import spec_id

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
