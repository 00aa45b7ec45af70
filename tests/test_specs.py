"""Specs as data: equal specs are the same run, everything that changes a result changes the id."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from titer.schema.breach import Breach
from titer.schema.specs import (
    AttackRun,
    Compute,
    ImmunizeRun,
    Named,
    ProbeSet,
    Selection,
    Template,
    TrainArgs,
    run_id,
    selections,
)
from titer.schema.types import Budget, from_json, to_json

DATA = Selection("toy", "attack", True, ("brew",), n=8)
ATTACK = AttackRun("m", Named("sft", {"learning_rate": 1e-3}), DATA, (ProbeSet("harm", DATA),), Budget(steps=5))
IMMUNIZE = ImmunizeRun("m", Named("repnoise"), DATA, retain=Selection("toy", restricted=False))
INPUTS = {"model": "abc", "toy": "def"}


@pytest.mark.parametrize("run", [ATTACK, IMMUNIZE], ids=["attack", "immunize"])
def test_a_run_survives_json(run: Any) -> None:
    assert from_json(type(run), json.loads(json.dumps(to_json(run)))) == run


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": Named("lora")},
        {"attack": Named("sft", {"learning_rate": 1e-4})},
        {"data": replace(DATA, seed=1)},
        {"data": replace(DATA, n=9)},
        {"probes": (ProbeSet("harm", DATA, max_new_tokens=8),)},
        {"probes": (ProbeSet("harm", DATA, template=Template(prefill="yes")),)},
        {"budget": Budget(steps=6)},
        {"budget": Budget(tokens=5)},
        {"retain": DATA},
        {"plan": (0, 5)},
        {"stop_after": 1},
        {"breach": Breach(phi=0.4)},
        {"seed": 1},
        {"compute": Compute(dtype="bfloat16")},
        {"compute": Compute(device="cuda")},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_field_is_part_of_the_address(changes: dict[str, Any]) -> None:
    assert run_id(ATTACK, INPUTS) == run_id(replace(ATTACK), INPUTS)
    assert run_id(replace(ATTACK, **changes), INPUTS) != run_id(ATTACK, INPUTS)


@pytest.mark.parametrize("f", fields(TrainArgs), ids=lambda f: f.name)
def test_every_hyper_parameter_is_part_of_the_address(f: Any) -> None:
    other = {bool: not f.default, str: f"{f.default}x"}.get(type(f.default), 7)
    changed = replace(IMMUNIZE, train=replace(IMMUNIZE.train, **{f.name: other}))
    assert run_id(changed, INPUTS) != run_id(IMMUNIZE, INPUTS)


def test_the_address_goes_by_content_and_not_by_name_or_card() -> None:
    assert run_id(replace(ATTACK, model="elsewhere/m"), INPUTS) == run_id(ATTACK, INPUTS)
    assert run_id(ATTACK, {**INPUTS, "model": "xyz"}) != run_id(ATTACK, INPUTS)
    assert run_id(ATTACK, {**INPUTS, "toy": "xyz"}) != run_id(ATTACK, INPUTS)
    cards = [replace(ATTACK, compute=Compute(device=d)) for d in ("cuda:0", "cuda:1")]
    assert run_id(cards[0], INPUTS) == run_id(cards[1], INPUTS)


def test_every_selection_a_run_reads_has_a_role() -> None:
    assert selections(ATTACK) == {"data": DATA, "probe:harm": DATA}
    assert set(selections(IMMUNIZE)) == {"data", "retain"}


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": -1e-4},
        {"learning_rate": float("nan")},
        {"per_device_train_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"max_steps": -1},
        {"max_length": 1},
        {"lora_r": -2},
    ],
    ids=str,
)
def test_hyper_parameters_out_of_range_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be"):
        TrainArgs(**changes)
