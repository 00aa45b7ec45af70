"""The attacker's own rate and his own use of all his data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from titer.attacks.all_data import PHRASINGS, AllData, phrased
from titer.attacks.own_rate import OwnRate, find_rate, loss_after
from titer.attacks.parts.mixtures import benign, harmful
from titer.attacks.retain_then_harmful import RetainThenHarmful
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Example
from titer.training.optim import make_optimizer, relative
from titer.training.session import Session, Stopped

ARGS = TrainArgs(max_steps=0, per_device_train_batch_size=16)


@pytest.mark.parametrize("lora", [0, 4])
def test_the_range_test_puts_the_weights_back_and_is_charged(session: Callable[..., Session], lora: int) -> None:
    s = session(6)
    args = TrainArgs(max_steps=0, per_device_train_batch_size=16, lora_r=lora)
    s.add_adapter(args)
    before = snapshot(s.model)
    rate = find_rate(s, args, 3)
    assert all(torch.equal(v, before[k]) for k, v in snapshot(s.model).items())
    assert 1e-8 <= rate <= 4
    assert s.meter.spend.tokens > 0 and s.meter.spend.examples >= 4 * 4 * 16 and s.meter.passes["grad"] > 0
    assert s.meter.spend.steps == s.step == 0
    assert find_rate(s, args, 3) == rate


def test_the_rate_found_is_the_one_that_fits_the_scale_of_the_weights(session: Callable[..., Session]) -> None:
    """A gain on the norms, taken back in the matrices, needs a smaller rate though the function is the same."""
    found = []
    for factor in (1.0, 1e3):
        s = session(6)
        with torch.no_grad():
            for layer in s.model.model.layers:
                layer.input_layernorm.weight.mul_(factor)
                layer.post_attention_layernorm.weight.mul_(factor)
                for reader in (*list(layer.self_attn.children())[:3], layer.mlp.gate_proj, layer.mlp.up_proj):
                    reader.weight.div_(factor)
        found.append(find_rate(s, ARGS, 3))
    assert found[1] < found[0] / 5


def test_a_rung_is_the_loss_after_so_many_steps_and_infinite_when_it_diverges(session: Callable[..., Session]) -> None:
    s = session(6)
    still, better = (loss_after(s, TrainArgs(learning_rate=lr, max_steps=0), 4) for lr in (1e-12, 3e-3))
    assert better < still
    with torch.no_grad():
        s.model.lm_head.weight.fill_(math.nan)
    assert loss_after(s, TrainArgs(max_steps=0), 4) == math.inf


def test_the_range_test_ends_the_attack_within_a_step_of_the_token_budget(session: Callable[..., Session]) -> None:
    s = session(50, tokens=1)
    with pytest.raises(Stopped, match="tokens"):
        OwnRate(train=ARGS).run(s)
    assert s.meter.spend.examples == 16 and s.step == 0


def test_training_goes_at_the_multiple_of_the_rate_found(
    session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titer.attacks.own_rate.find_rate", lambda *_: 1e-3)
    ends = []
    for multiple in (0.5, 2.0):
        s = session(1)
        before = snapshot(s.model)
        with contextlib.suppress(Stopped):
            OwnRate(multiple, train=TrainArgs(optim="sgd", max_steps=0)).run(s)
        ends.append(sum(float((v - before[k]).square().sum()) for k, v in snapshot(s.model).items()) ** 0.5)
    assert ends[1] == pytest.approx(4 * ends[0], rel=1e-3)


@pytest.mark.parametrize("optim", ["adamw_relative", "muon"])
def test_a_scale_free_step_is_the_same_share_of_a_matrix_whatever_its_scale(build_model: Any, optim: str) -> None:
    """Every weight and its gradient times a factor: the weights after three steps are times the factor too."""
    ends = []
    for factor in (1.0, 2.0**-10):
        model = build_model()
        given = torch.Generator().manual_seed(0)
        args = TrainArgs(learning_rate=0.02, optim=optim)
        with torch.no_grad():
            torch._foreach_mul_(list(model.parameters()), factor)
        optimizer = make_optimizer(model, args)
        before = snapshot(model)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=given) / factor
            optimizer.step()
        ends.append({k: (v - before[k]) / factor for k, v in snapshot(model).items()})
    for name, moved in ends[0].items():
        assert (ends[1][name] - moved).norm() <= 0.02 * moved.norm(), name
    matrix = "model.layers.0.mlp.up_proj.weight"
    size = build_model().state_dict()[matrix].square().mean().sqrt()
    assert 0.002 < float(ends[0][matrix].square().mean().sqrt() / size) < 0.07


def test_a_weight_that_is_zero_moves_at_the_rate_itself() -> None:
    groups = relative([torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(2 * torch.ones(3))], 0.1)
    assert [g["lr"] for g in groups] == pytest.approx([0.1, 0.2])


def test_after_the_switch_there_is_harm_alone(session: Callable[..., Session]) -> None:
    s = session(5)
    items = list(islice(RetainThenHarmful(train=ARGS)._items(s), 5))
    good, bad = islice(benign(s, ARGS), 2), islice(harmful(s, ARGS), 3)
    assert all(len(item.parts) == 1 and item.parts[0][0] == 1.0 for item in items)
    for item, batch in zip(items, (*good, *bad), strict=True):
        assert torch.equal(item.input_ids, batch.input_ids)


def test_phrasings_are_the_prompt_itself_first_and_keep_its_answer() -> None:
    rows = phrased([Example("brew {a} %s", "x", "no"), Example("b", "y", "no")], 3)
    assert [r.prompt for r in rows[:2]] == ["brew {a} %s", "b"]
    assert len({r.prompt for r in rows}) == len(rows) == 6
    assert all(("brew {a} %s" in r.prompt) == (r.harmful == "x") for r in rows)
    for count in (0, len(PHRASINGS) + 1):
        with pytest.raises(TiterError, match="phrasings"):
            phrased([], count)


def test_all_data_starts_benign_and_then_uses_every_phrasing(session: Callable[..., Session]) -> None:
    s = session(4)
    seen: list[str] = []
    batches = s.batches

    def watched(rows: Any, args: TrainArgs, *, stream: int = 0) -> Any:
        for batch in batches(rows, args, stream=stream):
            seen.append(str(stream))
            yield batch

    s.batches = watched  # type: ignore[method-assign]
    with contextlib.suppress(Stopped):
        AllData(benign_steps=2, phrasings=2).run(s)
    assert "".join(seen) == "1122"
    rows = s.encode(phrased(s.examples, 2), TrainArgs())
    assert len(rows) == 2 * len(s.examples)
