"""8-bit optimiser states and 4-bit bases: refused in one line without the extra; the real path where it is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from titer.models.load import load_model
from titer.models.weights import restore, save_model, snapshot
from titer.runs import verbs as verbs_module
from titer.runs.checks import check_bits
from titer.schema.errors import TiterError
from titer.schema.evaluation import Attempt, Data, Immunization
from titer.schema.specs import AttackRun, Compute, ImmunizeRun, Named, Selection, TrainArgs
from titer.schema.types import Budget
from titer.training.meter import cost_of

LORA = TrainArgs(lora_r=4)
BITS = Compute(load_in_4bit=True)


def immunization(**changes: Any) -> ImmunizeRun:
    return ImmunizeRun(**{"model": "m", "defence": Named("booster"), "data": Selection("d"), **changes})


def attack(**options: Any) -> AttackRun:
    return AttackRun(
        "m",
        Named("sft", options),
        Selection("d"),
        (),
        Budget(steps=1),
        compute=Compute(load_in_4bit="optim" not in options),
    )


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


@pytest.mark.parametrize(
    "run",
    [
        immunization(train=TrainArgs(optim="adamw_8bit")),
        immunization(train=LORA, compute=BITS),
        attack(optim="adamw_8bit"),
        attack(lora_r=4),
    ],
)
def test_without_the_extra_the_line_names_it(without: None, run: Any) -> None:
    with pytest.raises(TiterError, match=r"titer\[bnb\]"):
        check_bits(run)


@pytest.mark.parametrize("run", [immunization(compute=BITS), attack()])
def test_a_4_bit_model_trains_an_adapter_only(run: Any) -> None:
    with pytest.raises(TiterError, match="only an adapter trains"):
        check_bits(run)


def test_no_fresh_weights_in_4_bits() -> None:
    with pytest.raises(TiterError, match="no weights to quantise"):
        check_bits(immunization(model="random:m", compute=BITS))


def test_the_refusal_comes_before_anything_is_loaded(
    without: None, tmp_path: Path, toy_model: str, toy_data: str
) -> None:
    with pytest.raises(TiterError, match=r"titer\[bnb\]"):
        verbs_module.immunize(
            toy_model,
            Immunization("booster", data=Data(toy_data), train=TrainArgs(optim="adamw_8bit")),
            output_dir=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- with the extra installed


@pytest.fixture
def wide_model(build_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> str:
    """The toy model as wide as a block of 4-bit weights."""
    pytest.importorskip("bitsandbytes")
    save_model(build_model(hidden_size=64, intermediate_size=128), tokenizer, tmp_path / "wide")
    return str(tmp_path / "wide")


@pytest.mark.filterwarnings("ignore")
def test_a_4_bit_model_is_near_the_whole_one_and_counts_as_many_flops(wide_model: str) -> None:
    whole, _ = load_model(wide_model)
    small, _ = load_model(wide_model, load_in_4bit=True)
    ids = torch.tensor([[1, 5, 6, 7]])
    gap = (small(ids).logits - whole(ids).logits).norm() / whole(ids).logits.norm()
    assert 0 < gap < 0.3
    assert cost_of(small).weights == cost_of(whole).weights
    saved = snapshot(small)
    assert all(v.is_floating_point() for v in saved.values())
    small.model.norm.weight.data.add_(1)
    restore(small, saved)
    assert torch.equal(small.model.norm.weight, whole.model.norm.weight)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_trained_on_4_bits_ends_on_the_whole_model(wide_model: str, toy_data: str, tmp_path: Path) -> None:
    args = TrainArgs(1e-2, 6, lora_r=4, optim="adamw_8bit")
    record = verbs_module.immunize(
        wide_model,
        Immunization("booster", data=Data(toy_data), train=args, compute=BITS),
        output_dir=tmp_path / "out",
    )
    made, _ = load_model(str(tmp_path / "out"))
    assert all(p.dtype == torch.float32 for p in made.parameters())
    assert record.result["weight_change"] > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_an_attack_through_an_adapter_on_4_bits_lowers_its_loss(
    wide_model: str, toy_data: str, tmp_path: Path
) -> None:
    done = verbs_module.attack(
        wide_model,
        Attempt(
            "lora",
            learning_rate=1e-2,
            data=Data(toy_data),
            seeds=(0,),
            budget=Budget(steps=20),
            n_eval=4,
            compute=BITS,
        ),
        output_dir=tmp_path,
    )
    losses = [p.loss for p in done.curves[0].points if p.loss is not None]
    assert losses[-1] < losses[0]
