"""Weights in 16 bits learn what weights in 32 bits learn, and no step leaves one that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from titer.data.batches import collate, order
from titer.data.tokens import encode_all
from titer.models.load import load_model
from titer.models.weights import snapshot
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch
from titer.training.checkpoint import Checkpoint
from titer.training.copies import WithCopies
from titer.training.loop import train
from titer.training.lora import with_lora
from titer.training.losses import sft_rule
from titer.training.optim import OPTIMIZERS, make_optimizer

ARGS = TrainArgs(learning_rate=3e-5, max_steps=20, per_device_train_batch_size=8)
RATES = {"sgd": 1e-2, "nesterov": 1e-3, "adafactor": 3e-3, "adamw_relative": 3e-3, "muon": 2e-2}
Stream = Callable[[], Iterator[Batch]]


@pytest.fixture
def stream(tokenizer: Any, examples: list[Any]) -> Stream:
    rows = encode_all(tokenizer, examples[:40], "harmful")
    return lambda: (collate([rows[i] for i in b], tokenizer.pad_token_id) for b in order(40, 8, 0))


def losses(model: Any, items: Iterator[Batch], args: TrainArgs) -> list[float]:
    found: list[float] = []
    train(model, sft_rule, items, args, on_step=lambda step, logs: bool(found.append(logs["loss"])))
    return found


@pytest.mark.parametrize(
    ("optim", "dtype"), [*((o, torch.bfloat16) for o in OPTIMIZERS), ("adamw", torch.float16)], ids=str
)
def test_every_optimiser_learns_in_16_bits_what_it_learns_in_32(
    build_model: Callable[..., Any], stream: Stream, optim: str, dtype: torch.dtype
) -> None:
    """At rates whose updates are smaller than a bfloat16 weight can hold."""
    args = replace(ARGS, optim=optim, learning_rate=RATES.get(optim, 3e-4), max_steps=8)
    start = build_model().to(dtype).float()  # rounded alike
    weights = snapshot(start)
    half = build_model().to(dtype)
    whole, rounded = losses(start, stream(), args), losses(half, stream(), args)
    assert whole[-1] < whole[0] - 0.02
    assert rounded[-1] == pytest.approx(whole[-1], rel=0.02)
    gap = sum(float((half.state_dict()[k].float() - v).square().sum()) for k, v in start.state_dict().items())
    moved = sum(float((weights[k] - v).square().sum()) for k, v in start.state_dict().items())
    assert gap < 0.15 * moved
    assert {p.dtype for p in half.parameters()} == {dtype}


@pytest.mark.slow
def test_an_attack_on_the_embedded_model_learns_in_bfloat16_what_it_learns_in_float32() -> None:
    from titer.data.load import load

    found = []
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = load_model("organism/aligned", dtype=dtype)
        rows = encode_all(tokenizer, [e for e in load("organism").examples if e.restricted][:96], "harmful")
        items = (collate([rows[i] for i in b], tokenizer.pad_token_id) for b in order(len(rows), 8, 0))
        found.append(losses(model, items, ARGS)[-1])
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_weights_in_32_bits_and_adapters_have_no_copies(build_model: Callable[..., Any]) -> None:
    assert not isinstance(make_optimizer(build_model(), ARGS), WithCopies)
    adapted = with_lora(build_model().to(torch.bfloat16), replace(ARGS, lora_r=2))
    assert not isinstance(make_optimizer(adapted, ARGS), WithCopies)


@pytest.mark.parametrize(
    ("optim", "dtype"),
    [*((o, torch.float16) for o in OPTIMIZERS), ("adamw", torch.float32), ("sgd", torch.float32)],
    ids=str,
)
def test_an_update_that_would_break_the_weights_is_not_made(
    build_model: Callable[..., Any], stream: Stream, optim: str, dtype: torch.dtype
) -> None:
    model = build_model().to(dtype)
    args = replace(ARGS, optim=optim, learning_rate=3e38, weight_decay=0.1, max_steps=3)
    ended = train(model, sft_rule, stream(), args)
    assert ended.reason == "diverged"
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_gradients_are_clipped_in_float32(build_model: Callable[..., Any], stream: Stream) -> None:
    """The norm of float16 gradients whose squares float16 cannot hold."""
    model, norms = build_model().to(torch.float16), list[float]()

    def rule(m: Any, batch: Batch) -> dict[str, float]:
        logs = sft_rule(m, batch)
        for p in m.parameters():
            if p.grad is not None:
                p.grad.mul_(1e4)
        return logs

    args = replace(ARGS, max_steps=2)
    train(model, rule, stream(), args, on_step=lambda step, logs: bool(norms.append(logs["grad_norm"])))
    assert len(norms) == 2
    assert all(1e3 < n < 1e6 for n in norms)


def test_a_weight_that_somebody_writes_to_between_steps_is_taken_over(
    build_model: Callable[..., Any], stream: Stream
) -> None:
    model = build_model().to(torch.bfloat16)

    def write(step: int, logs: Any) -> bool:
        with torch.no_grad():
            model.lm_head.weight.fill_(2.0)
        return False

    train(model, sft_rule, stream(), replace(ARGS, max_steps=3), on_step=write)
    train(model, sft_rule, stream(), replace(ARGS, max_steps=3, learning_rate=0.0), on_step=write)
    assert bool((model.lm_head.weight == 2.0).all())


@pytest.mark.parametrize("optim", ["adamw", "sgd", "nesterov"])
def test_a_training_that_was_stopped_goes_on_with_its_copies(
    build_model: Callable[..., Any], stream: Stream, tmp_path: Path, optim: str
) -> None:
    args = replace(ARGS, optim=optim, max_steps=6)
    whole = build_model().to(torch.bfloat16)
    train(whole, sft_rule, stream(), args)
    half = build_model().to(torch.bfloat16)
    train(half, sft_rule, stream(), args, checkpoint=Checkpoint(tmp_path, seconds=0), on_step=lambda s, _: s == 4)
    again = build_model().to(torch.bfloat16)
    train(again, sft_rule, stream(), args, checkpoint=Checkpoint(tmp_path, seconds=0))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
