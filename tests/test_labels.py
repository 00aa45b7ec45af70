"""What configurations are called in tables: the attack and every option that it was given."""

from __future__ import annotations

from titer.attacks import make_attack
from titer.evaluation.suites import SUITES
from titer.runs.attack import label


def test_labels_name_every_option_nested_ones_too() -> None:
    given = {"learning_rate": 1e-3, "train_template": {"kind": "plain"}, "train": {"warmup_steps": 3}}
    assert (
        label(make_attack("sft", given), given)
        == "sft(learning_rate=0.001, train_template.kind=plain, warmup_steps=3)"
    )
    assert label(make_attack("sft", {}), {}) == "sft(learning_rate=0.0003)"


def test_no_two_members_of_a_suite_are_called_the_same() -> None:
    for suite in SUITES.values():
        names = [label(make_attack(m.attack.name, m.attack.options), m.attack.options) for m in suite.members]
        assert len(set(names)) == len(names)
