"""What every attack owes the harness: it runs, keeps to the budget, leaves the model whole, and is searchable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from titer.attacks import ATTACKS, make_attack
from titer.models.weights import restore, snapshot
from titer.schema.space import Choice, within
from titer.schema.types import describe
from titer.training.session import Session

AT_TEST = {"none", "prefill", "activation-noise", "in-context"}  # what is done while the model answers
EDITS = {"quantise", "prune", "merge-with-base", "base-difference", "refusal-ablation", "rank-ablation"}
TRAINED = sorted(set(ATTACKS) - AT_TEST - EDITS)


def small(name: str, toy_model: str, **more: Any) -> Any:
    """The attack with everything in it a few steps long."""
    options: dict[str, Any] = {
        "merge-with-base": {"base": toy_model},
        "base-difference": {"reference": toy_model},
        "warm-start": {"reference": toy_model},
        "all-data": {"benign_steps": 1, "per_device_train_batch_size": 8},
        "own-rate": {"rung_steps": 1},
        "policy-gradient": {"group": 2, "max_new_tokens": 4, "per_device_train_batch_size": 4},
        "benign-then-harmful": {"benign_steps": 1},
        "repair": {"harm_steps": 1, "repair_steps": 1},
        "kick-settle": {"kick_steps": 1},
    }.get(name, {})
    return make_attack(name, options | more)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_runs_within_its_budget_and_leaves_the_model_restorable(
    name: str,
    session: Callable[..., Session],
    attacked: Callable[[Session, Any], Session],
    aligned: tuple[Any, Any],
    toy_model: str,
) -> None:
    fresh = session(4)
    model = fresh.model
    done = attacked(fresh, small(name, toy_model))
    assert done.meter.spend.steps == done.step <= 4
    assert [p.step for p in done.points] == sorted({p.step for p in done.points})
    assert done.model is model, "the adapter is still on"
    restore(done.model, aligned[1])
    assert set(snapshot(done.model)) == set(aligned[1])
    assert all(p.requires_grad for p in done.model.parameters())
    if name in TRAINED:
        assert done.step == 4
        assert done.meter.spend.tokens > 0
    if name in EDITS:
        assert done.step == 1
    if name in AT_TEST:
        assert [p.step for p in done.points] == [0]


@pytest.mark.parametrize("name", ["kick-settle", "policy-gradient", "reverse-preference", "sft-hf", "warm-start"])
def test_never_more_than_one_step_beyond_a_token_budget(
    name: str, session: Callable[..., Session], attacked: Callable[[Session, Any], Session], toy_model: str
) -> None:
    done = attacked(session(50, tokens=1), small(name, toy_model))
    assert done.meter.spend.steps <= 1
    assert done.meter.spend.tokens > 0


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"none"}))
def test_known_settings_lie_in_the_space_and_every_corner_of_it_can_be_built(name: str) -> None:
    cls = ATTACKS.find(name)
    assert cls.source and cls.known
    assert all(within(cls.space, options) for options in cls.known)
    assert len({describe(make_attack(name, options)) for options in cls.known}) == len(cls.known)
    for option, knob in cls.space.items():
        for value in knob.values if isinstance(knob, Choice) else (knob.low, knob.high):
            make_attack(name, {option: value})
