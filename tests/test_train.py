"""The one loop: same bits twice, budgets kept, divergence without damage, schedules, accumulation, adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import nn

from titer.data.batches import collate, order
from titer.data.tokens import encode_all
from titer.models.weights import Snapshot, restore, snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Budget, Example
from titer.training.loop import train
from titer.training.lora import with_lora
from titer.training.losses import answer_ce as cross_entropy
from titer.training.losses import sft_rule
from titer.training.meter import Meter
from titer.training.optim import OPTIMIZERS, SCHEDULES

ARGS = TrainArgs(learning_rate=1e-2, max_steps=5, per_device_train_batch_size=4)
Items = Callable[..., Iterator[Batch]]


@pytest.fixture
def items(examples: list[Example], tokenizer: Any) -> Items:
    rows = encode_all(tokenizer, [e for e in examples if e.restricted], "harmful")

    def stream(size: int = 4, seed: int = 0) -> Iterator[Batch]:
        for picked in order(len(rows), size, seed):
            yield collate([rows[i] for i in picked], tokenizer.pad_token_id)

    return stream


def same(a: Snapshot, b: Snapshot) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def with_changes(**changes: Any) -> TrainArgs:
    return TrainArgs(**{"learning_rate": 1e-2, "max_steps": 5, "per_device_train_batch_size": 4, **changes})


def test_the_same_spec_gives_the_same_bits_and_another_seed_does_not(
    build_model: Callable[..., Any], items: Items
) -> None:
    def bits(seed: int) -> Snapshot:
        model = build_model(attention_dropout=0.3)
        torch.rand(seed + 7)  # what ran before must not matter
        train(model, sft_rule, items(), ARGS, seed=seed)
        return snapshot(model)

    assert same(bits(1), bits(1))
    assert not same(bits(1), bits(2))


def test_training_lowers_the_loss_and_leaves_the_model_ready_to_use(model: Any, items: Items) -> None:
    probe = next(items(16, seed=9))
    before = float(cross_entropy(model, probe).detach())
    ended = train(model, sft_rule, items(), with_changes(max_steps=30))
    assert (ended.reason, ended.steps) == ("finished", 30)
    assert float(cross_entropy(model, probe).detach()) < 0.6 * before
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_cross_entropy_is_the_mean_over_response_tokens(model: Any, items: Items) -> None:
    batch = next(items())
    with torch.no_grad():
        logs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.log_softmax(-1)
    each = [
        -logs[i, t - 1, batch.labels[i, t]]
        for i in range(len(batch.labels))
        for t in range(1, batch.labels.shape[1])
        if batch.labels[i, t] != -100
    ]
    assert float(cross_entropy(model, batch).detach()) == pytest.approx(float(sum(each)) / len(each), rel=1e-5)


@pytest.mark.parametrize("unit", ["steps", "examples", "tokens", "flops", "device_seconds", "usd"])
def test_a_budget_is_exceeded_by_less_than_one_step(model: Any, items: Items, unit: str) -> None:
    meter = Meter(usd_per_exaflop=1.0)
    train(model, sft_rule, items(), with_changes(max_steps=1), meter=meter)
    limit = getattr(meter.spend, unit) * 3.5
    meter, spent = Meter(usd_per_exaflop=1.0), [0.0]

    def note(step: int, logs: Mapping[str, float]) -> bool:
        spent.append(getattr(meter.spend, unit))
        return False

    budget = Budget(**{unit: int(limit) if unit in ("steps", "examples", "tokens") else limit})
    ended = train(model, sft_rule, items(), with_changes(max_steps=2000), meter=meter, budget=budget, on_step=note)
    assert ended.reason == f"budget:{unit}"
    allowed = getattr(budget, unit)
    assert spent[-2] < allowed <= spent[-1]
    assert 1 <= ended.steps < 2000
    assert ended.steps == meter.spend.steps


def test_no_budget_left_is_no_step(model: Any, items: Items) -> None:
    before = snapshot(model)
    ended = train(model, sft_rule, items(), ARGS, budget=Budget(steps=0))
    assert (ended.reason, ended.steps) == ("budget:steps", 0)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("how", ["loss", "gradient", "term"])
def test_divergence_is_an_outcome_and_the_bad_update_is_not_made(model: Any, items: Items, how: str) -> None:
    good: list[Snapshot] = []

    def rule(m: nn.Module, batch: Batch) -> dict[str, float]:
        logs = sft_rule(m, batch)
        if len(good) < 3:
            return logs
        first = next(iter(m.parameters()))
        assert first.grad is not None
        match how:
            case "loss":
                return {"loss": math.nan}
            case "term":
                return {**logs, "noise": math.inf}
            case "gradient":
                first.grad[0, 0] = math.nan
        return logs

    def keep(step: int, logs: Mapping[str, float]) -> bool:
        good.append(snapshot(model))
        return False

    meter = Meter()
    ended = train(model, rule, items(), with_changes(max_steps=9), meter=meter, on_step=keep)
    assert (ended.reason, ended.steps) == ("diverged", 3)
    assert same(good[-1], snapshot(model))
    assert meter.spend.steps == 3


@pytest.mark.parametrize("scale", [1e12, 1e30])
def test_a_gradient_of_any_finite_size_is_clipped_and_not_given_up_on(model: Any, items: Items, scale: float) -> None:
    """The norm of the larger one is beyond float32; the step is that of the unscaled gradient."""

    def trained(factor: float) -> Snapshot:
        def rule(m: nn.Module, batch: Batch) -> dict[str, float]:
            logs = sft_rule(m, batch)
            for p in m.parameters():
                if p.grad is not None:
                    p.grad.mul_(factor)
            return logs

        start = snapshot(model)
        args = with_changes(optim="sgd", learning_rate=0.1, max_steps=1, max_grad_norm=0.01)
        ended = train(model, rule, items(), args)
        assert (ended.reason, ended.steps) == ("finished", 1)
        after = snapshot(model)
        restore(model, start)
        return after

    plain, large = trained(1.0), trained(scale)
    assert all(torch.allclose(v, large[k], rtol=1e-3, atol=1e-6) for k, v in plain.items())


def test_the_caller_can_stop_it(model: Any, items: Items) -> None:
    ended = train(model, sft_rule, items(), ARGS, on_step=lambda step, logs: step == 2)
    assert (ended.reason, ended.steps) == ("stopped", 2)


def test_items_that_run_out_end_the_training(model: Any, items: Items) -> None:
    ended = train(model, sft_rule, islice(items(), 3), ARGS)
    assert (ended.reason, ended.steps) == ("finished", 3)


def test_an_adapter_trains_alone(model: Any, items: Items) -> None:
    before = snapshot(model)
    trained = with_lora(model, with_changes(lora_r=2), seed=1)
    start = {k: v.clone() for k, v in trained.state_dict().items() if "lora" in k}
    train(trained, sft_rule, items(), ARGS)
    after = trained.state_dict()
    assert same(before, trained.unload().state_dict())
    assert all(not torch.equal(start[k], after[k]) for k in start)


def test_an_adapter_is_drawn_from_its_seed_alone(build_model: Callable[..., Any]) -> None:
    def drawn(seed: int) -> Snapshot:
        torch.rand(3)
        return snapshot(with_lora(build_model(), with_changes(lora_r=2), seed=seed))

    state = torch.random.get_rng_state()
    with_lora(build_model(), with_changes(lora_r=2), seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(drawn(1), drawn(1))
    assert not same(drawn(1), drawn(2))


def test_named_targets_alone_get_an_adapter(model: Any) -> None:
    trained = with_lora(model, with_changes(lora_r=2, lora_target_modules="q_proj,v_proj"))
    touched = {k.split(".lora")[0].rsplit(".", 1)[-1] for k in trained.state_dict() if "lora" in k}
    assert touched == {"q_proj", "v_proj"}


class SlopeConfig:
    num_hidden_layers = hidden_size = 1

    def get_text_config(self) -> SlopeConfig:
        return self


class Slope(nn.Module):
    """One weight with gradient 1: under plain SGD its path is the sum of the learning rates."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.config = SlopeConfig()


def rates(args: TrainArgs) -> list[float]:
    model, path = Slope(), [0.0]

    def rule(m: nn.Module, item: Any) -> dict[str, float]:
        model.w.sum().backward()
        return {"loss": 0.0}

    def note(step: int, logs: Mapping[str, float]) -> bool:
        path.append(-float(model.w.detach()))
        return False

    one = Batch(*(torch.zeros(1, 1, dtype=torch.long),) * 3)
    train(model, rule, iter([one] * 99), args, on_step=note)
    return [b - a for a, b in pairwise(path)]


@pytest.mark.parametrize(
    ("kind", "warmup", "wanted"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [0, 0.5, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", 2, [0, 0.5, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]),
    ],
)
def test_schedules(kind: str, warmup: int, wanted: list[float]) -> None:
    args = TrainArgs(
        learning_rate=0.1, max_steps=6, optim="sgd", lr_scheduler_type=kind, warmup_steps=warmup, max_grad_norm=0
    )
    assert rates(args) == pytest.approx([0.1 * w for w in wanted], abs=1e-6)


def test_clipping_bounds_the_step_and_zero_only_measures(model: Any, items: Items) -> None:
    def moved(limit: float) -> tuple[float, float]:
        norms: list[float] = []
        before = snapshot(model)
        args = with_changes(optim="sgd", learning_rate=1.0, max_steps=1, max_grad_norm=limit)
        train(model, sft_rule, items(), args, on_step=lambda s, logs: bool(norms.append(logs["grad_norm"])))
        gap = sum(float((v - before[k]).square().sum()) for k, v in model.state_dict().items()) ** 0.5
        model.load_state_dict(before)
        return gap, norms[0]

    step, norm = moved(0.01)
    assert (step, norm > 0.02) == (pytest.approx(0.01, rel=1e-3), True)
    step, again = moved(0)
    assert step == pytest.approx(norm, rel=1e-3)
    assert again == norm


def test_accumulated_batches_equal_the_big_one(build_model: Callable[..., Any], items: Items) -> None:
    """Rows have equally many response tokens, so that the mean of means is the mean."""

    def end(size: int, count: int) -> tuple[Snapshot, int, int]:
        model, meter = build_model(), Meter()
        args = with_changes(optim="sgd", max_steps=3, max_grad_norm=0, gradient_accumulation_steps=count)
        train(model, sft_rule, items(size), args, meter=meter)
        return snapshot(model), meter.spend.examples, meter.spend.tokens

    (big, *big_spend), (small, *small_spend) = end(8, 1), end(2, 4)
    assert big_spend == small_spend == [24, big_spend[1]]
    assert all(torch.allclose(big[k], small[k], atol=1e-6) for k in big)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimiser_moves_the_weights(model: Any, items: Items, optim: str) -> None:
    before = snapshot(model)
    assert train(model, sft_rule, items(), with_changes(optim=optim, max_steps=2)).reason == "finished"
    assert not same(before, snapshot(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adam"}, "unknown optimiser 'adam': did you mean adamw"),
        ({"lr_scheduler_type": "cosin"}, "unknown lr_scheduler_type 'cosin': did you mean cosine"),
    ],
)
def test_an_unknown_optimiser_or_schedule(model: Any, items: Items, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TiterError, match=message):
        train(model, sft_rule, items(), with_changes(**changes))
    assert set(SCHEDULES) == {"constant", "cosine", "linear"}


def test_a_rule_without_gradient_is_an_error(model: Any, items: Items) -> None:
    with pytest.raises(TiterError, match="no gradient reached any parameter"):
        train(model, lambda m, b: {"loss": 0.0}, items(), ARGS)


def test_checkpointing_changes_no_bit_and_does_not_outlive_the_training(
    build_model: Callable[..., Any], items: Items
) -> None:
    plain, again = build_model(), build_model()
    train(plain, sft_rule, items(), ARGS)
    train(again, sft_rule, items(), with_changes(gradient_checkpointing=True))
    assert same(snapshot(plain), snapshot(again))
    assert not again.is_gradient_checkpointing


def test_bf16_autocast_trains_float32_weights(model: Any, items: Items) -> None:
    ended = train(model, sft_rule, items(), with_changes(bf16=True, max_steps=2))
    assert ended.reason == "finished"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
