"""Grading: a unit of statistics is a prompt, however many rows have it."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from titer.conditions.flags import raise_flags
from titer.conditions.stability import stability
from titer.data.select import select
from titer.models.load import load_model
from titer.runs.probe import Prober, distinct
from titer.schema.specs import ProbeSet, Selection
from titer.schema.types import Curve, Example, Point, Spend


@lru_cache(maxsize=1)
def aligned() -> tuple[Any, Any]:
    return load_model("organism/aligned")


def probed(rows: list[Example]) -> Curve:
    """The aligned organism on a probe set of rows, before any attack."""
    model, tokenizer = aligned()
    asked = Selection("organism", restricted=False)
    sets = [ProbeSet(n, asked, max_new_tokens=4, judge="exact") for n in ("inside", "outside", "harm", "over_refusal")]
    scores, outcomes, completions = Prober(sets, {s.name: rows for s in sets}, tokenizer)(model, 0)
    assert len(completions) == 4 * len(scores["inside"])
    return Curve("r", "model", "sft", "sft", "unseen", 0, (Point(0, Spend(), scores, outcomes),))


def test_a_row_repeated_ten_times_is_asked_once_and_counts_once() -> None:
    rows = select(Selection("organism", "evaluation", False, n=12))
    shouted = [replace(e, prompt=f"  {e.prompt.upper()}!") for e in rows]
    once, often = probed(rows), probed([*rows, *shouted, *rows * 9])
    assert once == often and len(once.points[0].scores["inside"]) == 12
    assert stability(once, once, margin=0.3) == stability(often, often, margin=0.3)
    assert raise_flags([once]) == raise_flags([often])
    assert any(f.code == "few-prompts" for f in raise_flags([often]))


def test_prompts_without_a_word_are_not_taken_for_one() -> None:
    rows = [Example(prompt, "", "an answer") for prompt in ("?", "!", "?", "A b", "a  B.")]
    assert [e.prompt for e in distinct(rows)] == ["?", "!", "A b"]
