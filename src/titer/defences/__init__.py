"""Defences before release: each a frozen dataclass with `backward(model, pair)` that adds its gradient to `.grad`.

The protocol is `Defence`. Two small extensions, for the few methods that are not (only) a gradient:
- `Prepares.prepare(examples, seed)` rewrites the data once, before training (SDD, extended refusal);
- `Transforms.transform(model, base, seed)` edits the weights once, before training and before an adapter is put on
  (LoX, which has no training at all, UNDO, clean-room). `base` is the checkpoint before alignment for those with
  "base" in `needs`, and None otherwise.
`isinstance(defence, Prepares)` tells. Defences add up: `configure("booster+deep-alignment", options)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.defences.base import Defence, Prepares, Transforms
from titer.defences.compose import Sum
from titer.schema.registry import Kind, split_options

DEFENCES = Kind("defence", "titer.defences")

__all__ = ["DEFENCES", "Defence", "Prepares", "Sum", "Transforms", "configure"]


def configure(name: str, options: Mapping[str, Any]) -> Defence:
    """The configured defence behind a name, an import path, or several joined by `+` (options as `member.option`)."""
    names = name.split("+")
    if len(names) == 1:
        defence: Defence = DEFENCES.build(name, options)
        return defence
    own = split_options(names, dict(options))
    return Sum(tuple(DEFENCES.build(n, own[n]) for n in names))
