"""The one error users meet: what is wrong, where, and what to do. The command line prints it and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TiterError(Exception):
    """Bad input. The message is one line: what, where, what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> TiterError:
    """A `TiterError` for a name that is not registered, with the nearest names (or all of them when few)."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
    return TiterError(f"unknown {kind} {name!r}: {hint}")
