"""What a run spends, against the formula written out for the toy model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from titer.schema.specs import TrainArgs
from titer.schema.types import Batch
from titer.training.lora import with_lora
from titer.training.meter import Meter, cost_of

WIDTH, INNER, LAYERS = 32, 48, 2
# q and o are WIDTH x WIDTH, k and v half of that (one of two heads), three MLP matrices, and the head
LAYER = WIDTH * WIDTH * 3 + 3 * WIDTH * INNER


def batch(lengths: tuple[int, ...], pad: int = 0) -> Batch:
    ids = torch.full((len(lengths), max(lengths)), pad)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        ids[i, :n] = torch.arange(5, 5 + n)
        mask[i, :n] = 1
    return Batch(ids, mask, torch.where(mask == 1, ids, -100))


def run(meter: Meter, model: Any, b: Batch, *, grad: bool = True) -> None:
    with meter.running(model), torch.set_grad_enabled(grad):
        model(input_ids=b.input_ids, attention_mask=b.attention_mask)


def weights(model: Any) -> int:
    return LAYERS * LAYER + WIDTH * int(model.config.vocab_size)


def test_flops_are_those_of_the_formula(model: Any) -> None:
    """Forward: 2 FLOPs a weight and token, and 2 for each of score and value sums over half the context on average."""
    meter, tokens, context = Meter(), 4 + 7, 7
    run(meter, model, batch((4, 7)), grad=False)
    forward = 2 * weights(model) * tokens + 2 * LAYERS * WIDTH * tokens * context
    assert meter.spend.flops == forward
    assert meter.spend.tokens == tokens
    run(meter, model, batch((4, 7)))
    assert meter.spend.flops == forward + (2 * forward + 2 * weights(model) * tokens)
    assert meter.spend.tokens == 2 * tokens


def test_passes_are_counted_by_kind(model: Any) -> None:
    meter = Meter()
    for grad in (True, True, False):
        run(meter, model, batch((3,)), grad=grad)
    assert meter.passes == {"grad": 2, "no_grad": 1}


def test_padding_is_not_a_token(model: Any) -> None:
    meter = Meter()
    run(meter, model, batch((2, 9, 1)))
    assert meter.spend.tokens == 12


def test_without_a_mask_every_position_is_a_token(model: Any) -> None:
    meter = Meter()
    with meter.running(model):
        model(input_ids=batch((5, 5)).input_ids)
        model(inputs_embeds=torch.zeros(2, 3, WIDTH))
    assert meter.spend.tokens == 16


def test_what_runs_outside_is_free_even_after_an_error(model: Any) -> None:
    meter = Meter()
    with pytest.raises(KeyError), meter.running(model):
        raise KeyError
    model(input_ids=batch((5,)).input_ids)
    assert meter.spend.tokens == 0
    assert meter.passes == {"grad": 0, "no_grad": 0}


def test_an_adapters_backward_pass_is_cheaper_and_its_forward_pass_dearer(build_model: Callable[..., Any]) -> None:
    full, adapted = cost_of(build_model()), cost_of(with_lora(build_model(), TrainArgs(lora_r=2)))
    assert adapted.trainable == adapted.weights - full.weights
    assert full.trainable == full.weights == weights(build_model())
    assert adapted.forward(10, 5) > full.forward(10, 5)
    assert adapted.backward(10, 5) < full.backward(10, 5)


def test_a_tied_head_is_counted_once_and_frozen_weights_take_no_gradient(build_model: Callable[..., Any]) -> None:
    tied = build_model(tie_word_embeddings=True)
    assert cost_of(tied).weights == weights(tied)
    tied.requires_grad_(False)
    assert cost_of(tied).trainable == 0


def test_recomputation_costs_one_more_forward_pass(model: Any) -> None:
    plain, again = Meter(), Meter()
    run(plain, model, batch((6,)))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    run(again, model.train(), batch((6,)))
    assert again.spend.flops - plain.spend.flops == cost_of(model).forward(6, 6)


def test_time_and_dollars(model: Any) -> None:
    meter, started = Meter(usd_per_exaflop=1e18), time.perf_counter()
    with meter.running(model):
        time.sleep(0.02)
        model(input_ids=batch((5,)).input_ids)
    time.sleep(0.05)
    elapsed = time.perf_counter() - started
    assert 0.02 <= meter.spend.device_seconds < elapsed - 0.05
    assert meter.spend.usd == pytest.approx(meter.spend.flops)
    assert meter.spend.flops > 0


def test_a_reference_models_passes_are_counted_too(build_model: Callable[..., Any]) -> None:
    model, reference = build_model(), build_model().requires_grad_(False)
    alone, both, b = Meter(), Meter(also=(reference,)), batch((4, 7))
    run(alone, model, b)
    with both.running(model):
        model(input_ids=b.input_ids, attention_mask=b.attention_mask)
        with torch.no_grad():
            reference(input_ids=b.input_ids, attention_mask=b.attention_mask)
    assert both.passes == {"grad": 1, "no_grad": 1}
    assert both.spend.tokens == 2 * alone.spend.tokens
    assert both.spend.flops == alone.spend.flops + cost_of(reference).forward(11, 7)
    reference(input_ids=b.input_ids)
    assert both.spend.tokens == 2 * alone.spend.tokens


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_on_every_layer_is_charged(build_model: Callable[..., Any], frozen: bool) -> None:
    """2 FLOPs a weight and row forward, as many for the states' gradient, and as many for a head that trains."""
    from titer.defences.parts.layer_loss import head_cross_entropy

    model, meter, rows = build_model(), Meter(), 6
    model.lm_head.requires_grad_(not frozen)
    hidden, targets = torch.randn(rows, WIDTH, requires_grad=True), torch.arange(rows)
    with meter.running(model):
        head_cross_entropy(model, model.lm_head, hidden, targets, torch.ones(rows))
    assert meter.spend.flops == (2 if frozen else 3) * 2 * rows * model.lm_head.weight.numel()
    before = meter.spend
    head_cross_entropy(model, model.lm_head, hidden, targets, torch.ones(rows))
    assert meter.spend == before and before.tokens == 0
