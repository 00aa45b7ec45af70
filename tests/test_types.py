"""The shared words: JSON round trips, content addresses, budgets, and how objects describe themselves."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.attacks.sft import Sft
from titer.schema.specs import TrainArgs
from titer.schema.types import (
    Budget,
    Completion,
    Curve,
    Estimate,
    Example,
    Flag,
    Point,
    RunRecord,
    Score,
    Spend,
    Verdict,
    describe,
    from_json,
    spec_id,
    to_json,
)

POINT = Point(3, Spend(3, 12, 200, 1e9, 0.5), {"harm": (0.0, None, 1.0)}, {"harm": {"comply": 1}}, loss=0.25)
ESTIMATE = Estimate(1.5, 1.0, None, 9, (0, 1, 2), ("a", "b"), "steps", "median")
WHOLE = [
    Example("p", "h", "r", "c", "d"),
    Spend(1, 2, 3, 4.0, 5.0, 6.0),
    Budget(steps=10),
    Score(None, None, "exact"),
    Completion("harm", 1, 0, "p", "t", "a", Score(1.0, "comply", "exact"), "c", "d"),
    POINT,
    Curve("r", "model", "sft", "sft(lr)", "unseen", 1, (POINT, POINT)),
    ESTIMATE,
    Verdict("resistance", "met", "It held.", ESTIMATE, 2.0, {"a": [1, {"b": None}]}),
    Flag("few-seeds", "only one", ("a",)),
    RunRecord("id", "attack", {"a": 1}, "finished", Spend(), 0, "2026-01-01"),
]


@pytest.mark.parametrize("value", WHOLE, ids=lambda v: type(v).__name__)
def test_json_text_brings_every_word_back(value: Any) -> None:
    assert from_json(type(value), json.loads(json.dumps(to_json(value)))) == value


def test_what_json_has_no_word_for_becomes_null() -> None:
    assert to_json({"a": math.nan, "b": [math.inf, 1.0], 3: {"z", "y"}}) == {
        "a": None,
        "b": [None, 1.0],
        "3": ["y", "z"],
    }


@pytest.mark.parametrize(
    ("data", "word"),
    [({"prompt": "p"}, "harmful"), ({"prompt": 3, "harmful": "", "harmless": ""}, "prompt")],
)
def test_missing_and_mistyped_keys_are_named(data: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"Example: {word}"):
        from_json(Example, data)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        from_json(Example, {"prompt": "p", "harmful": "", "harmless": "", "colour": "red"})
    with pytest.raises(ValueError, match="rubles"):
        from_json(Point, {"step": 0, "spend": {"rubles": 3}, "scores": {}})


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=5))
def test_a_content_address_does_not_depend_on_key_order(spec: dict[str, Any]) -> None:
    assert spec_id(spec) == spec_id(dict(reversed(spec.items())))


def test_a_content_address_depends_on_every_value() -> None:
    assert len({spec_id(s) for s in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": None})}) == 6
    assert spec_id({"a": 1}) == "015abd7f5cc57a2d"  # pinned: a change of the rule orphans every stored run


def test_budget_names_the_unit_that_is_used_up() -> None:
    budget = Budget(steps=10, tokens=100)
    assert budget.reached(Spend(steps=9, tokens=99)) is None
    assert budget.reached(Spend(steps=9, tokens=100)) == "tokens"
    assert budget.reached(Spend(steps=11)) == "steps"
    assert Budget(flops=0.0).reached(Spend()) == "flops"


@pytest.mark.parametrize("limits", [{}, {"steps": -1}, {"flops": math.nan}])
def test_a_budget_needs_a_sound_limit(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**limits)


def test_spends_add_unit_by_unit() -> None:
    assert Spend(1, 2, 3, 4.0, 5.0, 6.0) + Spend(10, 20, 30, 40.0, 50.0, 60.0) == Spend(11, 22, 33, 44.0, 55.0, 66.0)


def test_a_mean_is_none_as_soon_as_one_prompt_was_not_scored() -> None:
    assert POINT.mean("harm") is None
    assert POINT.mean("absent") is None
    assert Point(0, Spend(), {"harm": (0.0, 0.5)}).mean("harm") == 0.25


def test_an_object_is_named_by_what_differs_from_its_defaults() -> None:
    assert describe(Sft()) == "sft"
    changed = Sft(train=TrainArgs(learning_rate=1e-3, max_steps=0, lora_r=4))
    assert describe(changed) == "sft(learning_rate=0.001, lora_r=4)"
