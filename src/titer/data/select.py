"""The examples a selection chooses."""

from __future__ import annotations

import random
from collections.abc import Sequence

from titer.data.load import load
from titer.data.splits import distinct, split_of
from titer.schema.errors import TiterError
from titer.schema.specs import Selection
from titer.schema.types import Example


def select(selection: Selection) -> list[Example]:
    """The examples a selection names, in a seeded order; `n` of them are `n` different prompts, or all there are.

    Of a prompt that stands in the set several times the first row can be drawn, so that copies change nothing. Raises
    `TiterError` when a category or domain does not exist or nothing is left.
    """
    if selection.n is not None and selection.n < 1:
        raise TiterError(f"data set {selection.dataset}: n must be 1 or more, not {selection.n}")
    examples = load(selection.dataset).examples
    _check_names(selection, examples)
    kept = [e for e in examples if _wanted(e, selection)]
    if not kept:
        raise TiterError(f"data set {selection.dataset}: nothing left after selecting {_words(selection)}: widen it")
    if selection.n is not None:
        kept = distinct(kept)
    random.Random(selection.seed).shuffle(kept)
    if selection.skip or selection.salt:
        kept = _rest(kept, selection)
    return kept if selection.n is None else kept[: selection.n]


def _rest(ordered: Sequence[Example], s: Selection) -> list[Example]:
    """What lies behind the first `skip`, in an order of the salt's."""
    rest = list(ordered[s.skip :])
    if not rest:
        raise TiterError(f"data set {s.dataset}: nothing left after skipping {s.skip} of {_words(s)}: skip fewer")
    random.Random(f"{s.salt}/{s.seed}").shuffle(rest)
    return rest


def _wanted(e: Example, s: Selection) -> bool:
    return (
        (s.restricted is None or e.restricted == s.restricted)
        and (not s.categories or e.category in s.categories)
        and (not s.domains or e.domain in s.domains)
        and (s.split == "any" or split_of(e.prompt) == s.split)
    )


def _check_names(s: Selection, examples: Sequence[Example]) -> None:
    for field, wanted in (("category", s.categories), ("domain", s.domains)):
        known = {getattr(e, field) for e in examples}
        missing = sorted(set(wanted) - known)
        if missing:
            raise TiterError(f"data set {s.dataset}: no {field} {missing[0]!r}: it has {', '.join(sorted(known))}")


def _words(s: Selection) -> str:
    parts = [f"split {s.split}"]
    if s.restricted is not None:
        parts.append("restricted" if s.restricted else "open")
    parts += [*s.categories, *s.domains]
    return ", ".join(parts)
