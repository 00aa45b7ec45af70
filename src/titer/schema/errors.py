"""The one error users meet: what is wrong, where, and what to do. The command line prints it and exits with 2."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class TiterError(Exception):
    """Bad input. The message is one line: what, where, what to do."""


class DiskTrouble(TiterError):
    """A folder that cannot be written: the fault of no run, so nothing is to be concluded from it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> TiterError:
    """A `TiterError` for a name that is not registered, with the nearest names (or all of them when few)."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
    return TiterError(f"unknown {kind} {name!r}: {hint}")


def require(
    name: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Raise `ValueError` with one line when a number lies outside its range; NaN lies outside every range."""
    sound = not math.isnan(value)
    sound &= above is None or value > above
    sound &= least is None or value >= least
    sound &= most is None or value <= most
    if not sound:
        raise ValueError(f"{name} must {_range(above, least, most)}, not {value:g}")


def _range(above: float | None, least: float | None, most: float | None) -> str:
    if most is None:
        return f"be {least:g} or more" if least is not None else f"be more than {above:g}"
    low = f"({above:g}" if above is not None else f"[{least:g}"
    return f"lie in {low}, {most:g}]"
