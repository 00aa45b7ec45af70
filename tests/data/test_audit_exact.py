"""The audit finds every near duplicate: compared with trying all pairs."""

from __future__ import annotations

import random

import pytest

from titer.data.audit import NEAR, SHORT, audit
from titer.data.splits import normalise
from titer.schema.types import Example


def shingles(prompt: str) -> set[tuple[str, ...]]:
    words = normalise(prompt).split()
    return set(zip(words, words[1:], words[2:], strict=False)) if len(words) >= SHORT else set()


def by_all_pairs(left: list[str], right: list[str]) -> tuple[int, int]:
    same = {normalise(p) for p in left}
    exact = sum(normalise(p) in same for p in right)
    sets = [shingles(p) for p in left]
    near = 0
    for prompt in right:
        mine = shingles(prompt)
        if normalise(prompt) not in same and mine:
            near += any(other and len(mine & other) / len(mine | other) >= NEAR for other in sets)
    return exact, near


@pytest.mark.parametrize("seed", range(12))
def test_as_many_as_by_trying_all_pairs(seed: int) -> None:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(rng.choice((3, 12, 60)))]

    def prompt() -> str:
        return " ".join(rng.choices(words, k=rng.randint(4, 24)))

    left = [prompt() for _ in range(60)]
    right = [prompt() for _ in range(30)]
    for text in rng.sample(left, 30):  # changed in one or two places, so that many lie near the limit
        told = text.split()
        for _ in range(rng.randint(0, 2)):
            told[rng.randrange(len(told))] = rng.choice((*words, "new"))
        right.append(" ".join(told + rng.choices(words, k=rng.randint(0, 3))))
    found = audit({"a": [Example(p, "", "r") for p in left], "b": [Example(p, "", "r") for p in right]})
    assert (found[0].exact, found[0].near) == by_all_pairs(left, right)
    assert found[0].near > 0


def test_the_pair_shown_is_a_near_duplicate() -> None:
    text = " ".join(f"w{i}" for i in range(30))
    (found,) = audit(
        {"a": [Example("other", "", "r"), Example(text, "", "r")], "b": [Example(f"{text} more", "", "r")]}
    )
    assert (found.exact, found.near, found.example) == (0, 1, (text, f"{text} more"))


def test_sets_without_a_long_prompt() -> None:
    assert audit({"a": [Example("x", "", "r")], "b": []}) == []
