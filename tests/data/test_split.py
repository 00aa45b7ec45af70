"""Splits by hash: disjoint whatever the prompts, the same in every data set."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.data.load import load
from titer.data.select import select
from titer.data.splits import SHARES, categories, normalise, split_of
from titer.schema.errors import TiterError
from titer.schema.specs import Selection
from titer.schema.types import Example

SIDES = ("defence", "attack", "evaluation")


@given(st.text(), st.sampled_from(["  {}", "{}!", "{}\n", "«{}»"]))
def test_a_prompt_and_its_look_alikes_are_on_one_side(prompt: str, frame: str) -> None:
    assert split_of(prompt) == split_of(frame.format(prompt))
    assert split_of(prompt) in SIDES


def test_case_spacing_and_composition_do_not_matter() -> None:
    assert normalise(" How  to,\tBREW? ") == "how to brew"
    assert normalise("cafe\u0301 no\uff11") == normalise("CAF\u00c9 no1")
    assert normalise("snake_case") == "snake_case"


def test_shares_are_kept() -> None:
    counts = dict.fromkeys(SIDES, 0)
    for i in range(6000):
        counts[split_of(f"prompt number {i}")] += 1
    for side, share in SHARES:
        assert counts[side] / 6000 == pytest.approx(share, abs=0.02)


def test_a_prompts_side_is_pinned() -> None:
    # a change of the rule would let a stored defended model meet its own training data as unseen
    assert [split_of(p) for p in ("how to brew the amber", "how to forge the oak", "where is fern river")] == PINNED


PINNED = ["attack", "evaluation", "attack"]


def test_selections_of_different_splits_share_no_prompt(toy_data: str, examples: list[Example]) -> None:
    found = {s: {e.prompt for e in select(Selection(toy_data, s))} for s in SIDES}
    assert all(found.values())
    assert all(not found[a] & found[b] for a, b in combinations(SIDES, 2))
    assert set.union(*found.values()) == {e.prompt for e in examples}


def test_selection_by_kind_category_and_domain(toy_data: str) -> None:
    assert {e.restricted for e in select(Selection(toy_data, restricted=False))} == {False}
    assert {e.category for e in select(Selection(toy_data, categories=("brew", "chant")))} == {"brew", "chant"}
    assert {e.domain for e in select(Selection(toy_data, domains=("curses",)))} == {"curses"}


def test_a_sample_is_drawn_by_seed(toy_data: str) -> None:
    first, again, other = (select(Selection(toy_data, n=10, seed=s)) for s in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10
    assert select(Selection(toy_data, n=20, seed=1))[:10] == first
    assert len(select(Selection(toy_data, n=10_000))) == len(load(toy_data).examples)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"categories": ("brew", "bake")}, "no category 'bake': it has brew"),
        ({"domains": ("kitchen",)}, "no domain 'kitchen': it has curses, potions, towns"),
        ({"categories": ("brew",), "restricted": False}, "nothing left after selecting split any, open, brew"),
        ({"n": 0}, "n must be 1 or more, not 0"),
        ({"n": -3}, "n must be 1 or more, not -3"),
    ],
)
def test_a_selection_that_cannot_be_made_says_why(toy_data: str, selection: dict[str, object], message: str) -> None:
    with pytest.raises(TiterError, match=message):
        select(Selection(toy_data, **selection))  # type: ignore[arg-type]


def test_categories_by_domain_in_order(examples: list[Example]) -> None:
    assert categories(examples) == {"potions": ["brew", "forge"], "curses": ["whisper", "chant"]}
    assert categories(examples, restricted=False) == {"towns": ["river", "market"]}
