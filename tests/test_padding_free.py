"""Rows laid end to end in one: the same loss and gradient as padded ones, in every architecture family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from titer.data.batches import collate, flatten
from titer.data.tokens import Row
from titer.runs import verbs as verbs_module
from titer.schema.errors import TiterError
from titer.schema.evaluation import Attempt, Data, Immunization
from titer.schema.specs import Compute, TrainArgs
from titer.schema.types import Budget
from titer.training.losses import answer_ce as cross_entropy

SHAPE = {
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=8, num_key_value_heads=1),
    "gemma3": transformers.Gemma3TextConfig(
        **SHAPE,
        head_dim=8,
        num_key_value_heads=1,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=6,
    ),
    "gpt2": transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "phi": transformers.PhiConfig(**SHAPE),
}
ROWS = [Row((1, 5, 6, 20, 21, 2), 3), Row((1, 8, 9, 3, 4, 24, 0, 26, 2), 5), Row((1, 11, 12, 2), 2)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_padded_rows(family: str, attention: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation=attention).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = []
    for batch in (collate(ROWS, 0), flatten(ROWS)):
        model.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (padded, a), (free, b) = found
    assert free == pytest.approx(padded, rel=1e-6)  # the loss itself is summed in float32
    assert float((a - b).norm() / a.norm()) < 1e-6


def test_no_token_is_padding_and_no_row_predicts_the_next() -> None:
    batch = flatten([*ROWS, Row((7, 8), 0)])
    assert batch.input_ids.shape == (1, sum(len(r.ids) for r in ROWS) + 2)
    assert batch.rows == 4 and collate(ROWS, 0).rows == 3
    starts = [0, 6, 15, 19]
    assert (batch.labels[0, starts] == -100).all() and batch.position_ids is not None
    assert batch.position_ids[0, starts].tolist() == [0, 0, 0, 0]


def points(model: str, data: str, out: Path, **options: Any) -> Any:
    done = verbs_module.attack(
        model,
        Attempt(
            attack_args={"learning_rate": 1e-2, **options},
            data=Data(data),
            seeds=(0,),
            n_eval=6,
            budget=Budget(steps=5),
            compute=Compute("float64"),
        ),
        output_dir=out,
    )
    return done.curves[0].points, done.records[0].spend


def test_an_attack_without_padding_is_the_attack(toy_model: str, toy_data: str, tmp_path: Path) -> None:
    one, spent = points(toy_model, toy_data, tmp_path)
    two, spent_free = points(toy_model, toy_data, tmp_path, padding_free=True)
    assert [p.scores for p in one] == [p.scores for p in two]
    assert [p.loss for p in two[1:]] == pytest.approx([p.loss for p in one[1:]], rel=1e-5)
    assert (spent.tokens, spent.examples) == (spent_free.tokens, spent_free.examples)


def test_what_needs_its_rows_apart_refuses(toy_model: str, toy_data: str, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="defence booster needs its rows apart"):
        booster = Immunization("booster", data=Data(toy_data), train=TrainArgs(padding_free=True))
        verbs_module.immunize(toy_model, booster, output_dir=tmp_path / "a")
    with pytest.raises(TiterError, match="needs its rows apart"):
        options = {"padding_free": "true"}
        attempt = Attempt("side-step", options, data=Data(toy_data), seeds=(0,), n_eval=4)
        verbs_module.attack(toy_model, attempt, output_dir=tmp_path / "b")
