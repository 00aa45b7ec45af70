"""The contamination audit finds exact and near duplicates, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from titer.cli import main
from titer.data.audit import audit, require_disjoint, thin
from titer.data.load import load
from titer.schema.errors import TiterError
from titer.schema.types import Example

LONG = "the old miller walked down to the river and counted every boat that came in before noon on friday"


def of(*prompts: str) -> list[Example]:
    return [Example(p, "", "r") for p in prompts]


def test_exact_duplicates_are_those_of_the_normal_form() -> None:
    (found,) = audit({"a": of("Brew it!", "other"), "b": of("brew  it", "more")})
    assert (found.roles, found.exact, found.near, found.example) == (("a", "b"), 1, 0, ("Brew it!", "brew  it"))


def test_one_word_more_in_a_long_prompt_is_a_near_duplicate() -> None:
    (found,) = audit({"a": of("short", LONG), "b": of(LONG + " again")})
    assert (found.exact, found.near, found.example) == (0, 1, (LONG, LONG + " again"))


def test_the_same_sentence_about_something_else_is_not_a_duplicate() -> None:
    changed = LONG.replace("miller", "baker").replace("boat", "cart").replace("friday", "monday")
    assert audit({"a": of(LONG), "b": of(changed)}) == []


def test_short_prompts_that_differ_in_a_word_are_not_duplicates() -> None:
    assert audit({"a": of("how do i brew the amber one"), "b": of("how do i brew the birch one")}) == []


def test_every_two_sets_are_compared() -> None:
    found = audit({"a": of("x"), "b": of("y"), "c": of("x", "y")})
    assert [o.roles for o in found] == [("a", "c"), ("b", "c")]
    assert audit({"a": of("x"), "b": of(), "c": of("z")}) == []


def test_an_overlap_fails_the_run_and_shows_one() -> None:
    with pytest.raises(TiterError, match=r"defence and attack share prompts \(1 exact, 0 near\), e.g. 'x' and 'X'"):
        require_disjoint({"defence": of("x"), "attack": of("X")})
    require_disjoint({"defence": of("x"), "attack": of("y")})


def test_thinning_keeps_one_of_each_and_leaves_nothing_to_find() -> None:
    prompts = (
        LONG,
        "short",
        LONG + " again",
        LONG,
        LONG + " again indeed",
        "how do i brew it",
        "how do i brew it now",
    )
    kept = thin(of(*prompts))
    assert [e.prompt for e in kept] == [LONG, "short", LONG, "how do i brew it", "how do i brew it now"]
    unlike = [
        f"{w} {w}s {w}ed under {w} skies while {w} birds sang {w} songs for {w}" for w in ("amber", "birch", "elm")
    ]
    assert [e.prompt for e in thin(of(*unlike))] == unlike
    assert thin([]) == []


def test_a_chain_of_near_duplicates_is_cut_where_the_first_no_longer_reaches() -> None:
    chain = [" ".join(f"w{i}" for i in range(start, start + 40)) for start in range(0, 12, 2)]
    kept = [e.prompt for e in thin(of(*chain))]
    assert kept[0] == chain[0] and 1 < len(kept) < len(chain)
    assert audit({"a": of(kept[0]), "b": of(*kept[1:])}) == []


def test_the_command_writes_what_is_left(
    tmp_path: Path, rows: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"prompt": p, "harmless": "r"}) for p in (LONG, LONG + " again", "short")]
    main(["thin", "--dataset", rows(tmp_path / "a.jsonl", *lines), "--output", str(tmp_path / "b.jsonl")])
    assert "2 of 3 rows kept" in capsys.readouterr().out
    assert [e.prompt for e in load(str(tmp_path / "b.jsonl")).examples] == [LONG, "short"]
    with pytest.raises(SystemExit, match="2"):
        main(["thin", "--dataset", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "b.csv")])
