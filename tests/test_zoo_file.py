"""A zoo file: what is refused before anything runs, and what a setting becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from titer.campaigns.zoo.file import Zoo, parse_zoo, read_zoo
from titer.defences import DEFENCES
from titer.schema.errors import TiterError
from titer.schema.files import read_yaml
from titer.schema.registry import nested, validate

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = CONFIGS / "zoo.yaml"
LORA = {"attack": {"name": "lora", "options": {"learning_rate": 2e-3}}, "seeds": [100]}
SFT = {"attack": {"name": "sft", "options": {"learning_rate": 1e-3}}}


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "tokens": 1000,
        "defences": {"repnoise": [{}, {"noise_weight": 0.1, "learning_rate": 1e-3}]},
        "validation": {"members": [LORA]},
        "test": {"members": [SFT]},
        **changes,
    }


def test_a_setting_is_split_into_options_and_training() -> None:
    zoo = parse_zoo(raw(train={"learning_rate": 2e-4, "per_device_train_batch_size": 4}))
    plain, changed = zoo.candidates("repnoise")
    assert (plain.defence.options, plain.train.learning_rate) == ({}, 2e-4)
    assert (changed.defence.options, changed.train.learning_rate) == ({"noise_weight": 0.1}, 1e-3)
    assert plain.train.per_device_train_batch_size == changed.train.per_device_train_batch_size == 4
    run = zoo.immunization(changed, 7)
    assert (run.train.max_steps, run.defence, run.base) == (7, changed.defence, "")


def test_the_base_model_goes_to_those_that_need_it() -> None:
    zoo = parse_zoo(raw(defences={"lox": [{}]}))
    assert zoo.immunization(zoo.candidates("lox")[0], 0).base == "organism/base"


REFUSED = [
    (raw(token=3), "unknown key of zoo 'token'.*tokens"),
    (raw(tokens=0), "zoo: tokens: missing"),
    (raw(defences={"repnoise": []}), "repnoise: no setting"),
    (raw(defences={"repnose": [{}]}), "repnoise"),
    (raw(defences={"repnoise": [{"noise": 1}]}), "noise_weight"),
    (raw(defences={"repnoise": [{"max_steps": 5}]}), "repnoise: max_steps: the budget in tokens decides it"),
    (raw(defences={"repnoise": [{"learning_rate": "fast"}]}), "learning_rate"),
    (raw(validation={"members": [SFT]}), "sft is among the test attacks"),
    (raw(test={"members": [{"attack": {"name": "sfft"}}]}), "sfft"),
    (raw(reference="organism/alined"), "alined"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TiterError, match=message) as caught:
        parse_zoo(given)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shipped() -> Zoo:
    return read_zoo(SHIPPED)


def test_the_shipped_file_covers_the_registry_with_equal_numbers_of_settings(shipped: Zoo) -> None:
    named = {part for name in shipped.defences for part in name.split("+")}
    assert set(DEFENCES) <= named
    assert {len(shipped.candidates(name)) for name in shipped.defences} == {3}


def test_the_shipped_validation_is_not_in_its_test(shipped: Zoo) -> None:
    tests = (*shipped.test.members, *shipped.test.wide)
    assert not {m.attack.name + str(m.attack.options) for m in shipped.validation.members} & {
        m.attack.name + str(m.attack.options) for m in tests
    }
    assert all(len(m.seeds) >= 3 for m in tests)
    assert not {s for m in shipped.validation.members for s in m.seeds} & {s for m in tests for s in m.seeds}


def test_the_zoo_of_the_real_model_is_sound_but_for_the_model_that_is_made_first() -> None:
    zoo: Zoo = validate(Zoo, nested(Zoo, read_yaml(CONFIGS / "zoo-smollm2.yaml", "zoo", "")), "zoo")
    assert {len(zoo.candidates(name)) for name in zoo.defences} == {2}
    assert {m.attack.name for m in zoo.test.members} == {"lora", "sft"}
    assert zoo.candidates("undo")[0].train.lora_r == 0 and zoo.candidates("seam")[0].train.lora_r == 16
