"""Names to configured objects: nearest names, option checks, third-party import paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from titer.attacks import ATTACKS, make_attack
from titer.attacks.sft import Sft
from titer.defences import DEFENCES
from titer.judges import JUDGES
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs


@dataclass(frozen=True)
class Mine:
    """A third party's attack."""

    name: ClassVar[str] = "mine"
    strength: float = 1.0


def test_a_misspelt_name_gets_the_nearest_ones() -> None:
    with pytest.raises(TiterError, match=r"unknown defence 'repnose': did you mean repnoise"):
        DEFENCES.find("repnose")
    with pytest.raises(TiterError, match=r"known: .*lora.*sft"):
        ATTACKS.find("qqqqqqqq")


def test_an_import_path_is_as_good_as_a_name() -> None:
    assert type(ATTACKS.build("tests_registry_mine:Mine", {"strength": "2"})).__name__ == "Mine"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("tests_registry_mine")
    module.Mine, module.number = Mine, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_registry_mine", module)


@pytest.mark.parametrize("path", ["no_such_module_at_all:Mine", "tests_registry_mine:Nothing", "tests_registry_mine:"])
def test_an_import_path_that_leads_nowhere_is_one_line(path: str) -> None:
    with pytest.raises(TiterError, match="cannot be imported") as caught:
        ATTACKS.find(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_dataclass_is_refused() -> None:
    with pytest.raises(TiterError, match="not a dataclass"):
        ATTACKS.build("tests_registry_mine:number", {})


def test_options_of_the_training_may_be_given_flat_or_nested() -> None:
    flat = make_attack("sft", {"learning_rate": "0.01"})
    assert flat == make_attack("sft", {"train": {"learning_rate": 0.01}})
    assert flat == Sft(train=TrainArgs(learning_rate=0.01, max_steps=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1}, "unknown option of attack sft 'learning_rat': did you mean learning_rate"),
        ({"train": {"learning_rat": 1}}, "learning_rat"),
        ({"learning_rate": "fast"}, "attack sft: train.learning_rate: .*number, got 'fast'"),
        ({"lora_r": 1.5}, "lora_r"),
        ({"train": 5}, "train"),
        ({"train_template": {"kind": "chatty"}}, "train_template.kind"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TiterError, match=message) as caught:
        make_attack("sft", options)
    assert "\n" not in str(caught.value)


def test_every_judge_can_score() -> None:
    assert all(callable(JUDGES.find(name).score) for name in JUDGES)


@pytest.mark.parametrize(("kind", "registry"), [("defence", DEFENCES), ("attack", ATTACKS)])
def test_everything_registered_builds_with_its_defaults_and_answers_to_its_name(kind: str, registry: Any) -> None:
    for name in registry:
        assert registry.find(name).name == name


def test_several_values_of_an_option_are_joined_by_commas() -> None:
    from titer.conditions import CONDITIONS

    assert CONDITIONS.read("stability#over_refusal=xstest").over_refusal == ("xstest",)
    assert CONDITIONS.read("stability#lm_eval=piqa,arc_easy").lm_eval == ("piqa", "arc_easy")
    assert CONDITIONS.read("resistance#units=steps,usd").units == ("steps", "usd")
    with pytest.raises(TiterError, match="units"):
        CONDITIONS.read("resistance#units=stepps")
