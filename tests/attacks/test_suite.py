"""Suites are what they say: every member can be built, and pairs differ in what they are pairs of."""

from __future__ import annotations

import pytest

from titer.attacks import make_attack
from titer.evaluation.suites import SUITES, find_suite, strength_pairs, template_pairs
from titer.schema.specs import Named

STANDARD = [m.attack for m in find_suite("standard").members]


@pytest.mark.parametrize("name", SUITES)
def test_every_member_is_an_attack_of_its_own(name: str) -> None:
    suite = find_suite(name)
    for member in (*suite.members, *suite.wide, *suite.controls):
        assert make_attack(member.attack.name, member.attack.options) and member.seeds
    configs = [repr(make_attack(m.attack.name, m.attack.options)) for m in suite.members]
    assert len(set(configs)) == len(configs)


def test_the_members_that_decide_have_five_seeds() -> None:
    seeds = {m.attack.name: len(m.seeds) for m in find_suite("standard").wide}
    assert seeds == {"sft": 5, "lora": 5}
    plain = [m for m in find_suite("standard").members if m.attack.options.keys() == {"learning_rate"}]
    assert {len(m.seeds) for m in plain if m.attack.name in ("sft", "lora")} == {5}


def test_standard_has_pairs_for_the_flags_that_compare() -> None:
    templates = {(a.name, *sorted({*a.options} ^ {*b.options})) for a, b in template_pairs(STANDARD)}
    assert ("identity-shift", "at_test") in templates and ("sft", "test_template") in templates
    assert [(w.name, w.options, s.options) for w, s in strength_pairs(STANDARD) if w.name == "few-shot"] == [
        ("few-shot", {"n": 10}, {"n": 50})
    ]


def test_weaker_comes_first_and_other_differences_make_no_pair() -> None:
    few, many = Named("mixed", {"ratio": 0.1, "n": 50}), Named("mixed", {"ratio": 0.5, "n": 50})
    assert strength_pairs([many, few]) == [(few, many)]
    assert not strength_pairs([many, Named("mixed", {"ratio": 0.1, "n": 10})])
    assert not strength_pairs([Named("few-shot", {"n": 10}), Named("mixed", {"n": 50})])
    assert not strength_pairs([Named("sft", {"learning_rate": 1e-3}), Named("sft", {"learning_rate": 1e-4})])
    assert not template_pairs([Named("sft"), Named("sft"), Named("lora")])
