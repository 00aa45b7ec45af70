"""Roles of the data: what the defence sees, what is withheld, what attacks train on and are measured on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from titer.data.load import save_jsonl
from titer.data.roles import assign, check, digest, in_blocks
from titer.data.select import select
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.roles import Roles, block_name
from titer.schema.types import Example

PLACES = ("amber", "birch", "cedar", "dune", "elm", "fern", "gale", "heath", "iris", "jade")


def test_the_last_category_is_withheld_and_other_domains_are_cross(toy_data: str) -> None:
    plan = assign(Data(toy_data))
    assert plan == Roles(toy_data, toy_data, ("brew",), ("forge",), ("whisper", "chant"))
    assert plan.tags() == ("seen", "unseen", "withheld", "cross")
    other = assign(Data(toy_data, domain="curses", withhold=()))
    assert other == Roles(toy_data, toy_data, ("whisper", "chant"), (), ("brew", "forge"))
    assert other.tags() == ("seen", "unseen", "cross")


def test_withheld_categories_are_never_shown_to_the_defence(toy_data: str) -> None:
    plan = assign(Data(toy_data))
    assert {e.category for e in select(plan.defence())} == {"brew"}
    assert {e.category for e in select(plan.attack("withheld", None, 0))} == {"forge"}
    assert {e.category for e in select(plan.harm("cross", None))} == {"whisper", "chant"}


def test_no_role_trains_on_what_another_is_measured_on(toy_data: str) -> None:
    plan = assign(Data(toy_data))
    roles = [plan.defence(), plan.retain(), plan.utility(None)]
    roles += [plan.attack(t, None, 0) for t in ("unseen", "withheld", "cross")]
    roles += [plan.harm(t, None) for t in ("unseen", "withheld", "cross")]
    prompts = [{e.prompt for e in select(r)} for r in roles]
    assert all(not a & b for a, b in combinations(prompts, 2))


def test_the_attacker_may_be_given_the_defences_own_samples(toy_data: str) -> None:
    plan = assign(Data(toy_data))
    seen = select(plan.attack("seen", 3, 5))
    assert len(seen) == 3
    assert {e.prompt for e in seen} <= {e.prompt for e in select(plan.defence())}


def test_the_seed_draws_the_attackers_sample(toy_data: str) -> None:
    plan = assign(Data(toy_data))
    draws = [select(plan.attack("unseen", 4, s)) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain": "towns"}, "no restricted domain 'towns': it has potions, curses"),
        ({"withhold": ("chant",)}, "cannot withhold 'chant': domain potions has brew, forge"),
        ({"withhold": ("brew", "forge")}, "every category of potions is withheld"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(toy_data: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TiterError, match=message):
        assign(Data(toy_data, **changes))  # type: ignore[arg-type]


def test_a_tag_without_categories_is_an_error(toy_data: str) -> None:
    with pytest.raises(TiterError, match="no withheld categories"):
        assign(Data(toy_data, withhold=())).harm("withheld", None)


def test_open_data_alone_has_nothing_to_defend(tmp_path: Path, rows: Callable[..., str]) -> None:
    with pytest.raises(TiterError, match="no restricted examples"):
        assign(Data(rows(tmp_path / "a.jsonl", '{"prompt": "p", "response": "r"}')))


def test_the_check_counts_roles_and_finds_near_duplicates(
    tmp_path: Path, toy_data: str, examples: list[Example]
) -> None:
    found = check(assign(Data(toy_data)))
    seen = select(assign(Data(toy_data)).defence())
    assert found["sets"]["defence data"] == {
        "prompts": len(seen), "categories": ["brew"], "digest": digest(e.prompt for e in reversed(seen)),
    }  # fmt: skip
    assert len(found["sets"]) == 9 and found["exact"] == found["near"] == 0
    assert len({s["digest"] for s in found["sets"].values()}) == 9
    stem = "tell me at once how the smith of the upper town would forge such a fine blade in winter"
    twins = [Example(f"{stem} {w}", "with fire", "no", "forge", "potions") for w in PLACES]
    save_jsonl([*examples, *twins], tmp_path / "twins.jsonl")
    with pytest.raises(TiterError, match=r"attack data \(withheld\) .* share prompts \(0 exact, \d near\)"):
        check(assign(Data(str(tmp_path / "twins.jsonl"))))


def test_the_check_looks_at_open_data_too(tmp_path: Path, examples: list[Example]) -> None:
    stem = "tell me at once how the baker of the upper town would bake such a fine loaf in winter"
    twins = [Example(f"{stem} {w}", "", "with flour", "bread", "towns") for w in PLACES]
    save_jsonl([*examples, *twins], tmp_path / "twins.jsonl")
    with pytest.raises(TiterError, match=r"retain data and utility prompts share prompts \(0 exact, \d near\)"):
        check(assign(Data(str(tmp_path / "twins.jsonl"))))


def test_plans_that_defend_different_categories_share_blocks(toy_data: str) -> None:
    one, two = in_blocks([assign(Data(toy_data)), assign(Data(toy_data, domain="curses", withhold=()))])
    assert one.blocks == two.blocks == (("brew",), ("forge",), ("whisper", "chant"))
    assert (one.label("unseen"), two.label("unseen")) == ("unseen:brew", "unseen:whisper+chant")
    assert one.wide() == ("withheld:forge", "cross:whisper+chant")
    assert two.wide() == ("cross:brew", "cross:forge")  # its plan calls all of the other domain so
    assert one.attack("cross:whisper+chant", 3, 0) == two.attack("unseen:whisper+chant", 3, 0)  # one run, done once
    assert {e.category for e in select(two.harm("cross:forge", None))} == {"forge"}


def test_a_half_shared_domain_is_cut_into_parts(toy_data: str) -> None:
    whole, part = in_blocks([assign(Data(toy_data, withhold=())), assign(Data(toy_data))])
    assert whole.defended == ("brew", "forge") and whole.label("unseen") == "unseen:brew+forge"
    assert whole.wide() == ("unseen:brew", "unseen:forge", "cross:whisper+chant")
    assert part.wide() == ("withheld:forge", "cross:whisper+chant")


def test_plans_that_agree_have_no_blocks(toy_data: str) -> None:
    same = [assign(Data(toy_data))] * 2
    assert in_blocks(same) == same and same[0].label("unseen") == "unseen"
    assert same[0].wide() == ("withheld", "cross")


def test_many_categories_have_a_short_name() -> None:
    assert block_name(("a", "b", "c")) == "a+b+c" and block_name(tuple("abcdef")) == "a+5 more"
