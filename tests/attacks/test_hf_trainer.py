"""transformers' Trainer and titer's loop as two implementations of one attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from titer.attacks.sft import Sft
from titer.attacks.sft_hf import HfSft
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.training.session import Session, Stopped

STEPS = 8
WHOLE = TrainArgs(learning_rate=3e-3, max_steps=0, per_device_train_batch_size=100)  # every batch holds every row


def losses(session: Session, attack: Any) -> list[float]:
    """Training loss of every step, without generating anything."""
    session.prober = lambda model, step, template, around: ({"harm": (0.0,), "utility": (1.0,)}, {}, [])  # type: ignore[assignment]
    session.probe()
    attack.run(session)
    return [p.loss for p in session.points[1:] if p.loss is not None]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "linear"},
        {"optim": "rmsprop", "max_grad_norm": 0.3},
        {"lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2},
    ],
    ids=["constant", "cosine", "sgd", "rmsprop-clip", "lora"],
)
def test_on_the_same_batches_both_trainers_give_the_same_losses_and_weights(
    session: Callable[..., Session], changes: dict[str, Any]
) -> None:
    args = replace(WHOLE, **changes)
    ours = session(STEPS, plan=range(STEPS + 1))
    a = losses(ours, Sft(args))
    mine = snapshot(ours.model)
    ours.close()
    theirs = session(STEPS, plan=range(STEPS + 1))
    b = losses(theirs, HfSft(args))
    assert len(a) == len(b) == STEPS
    assert a == pytest.approx(b, rel=1e-4)
    assert a[-1] < 0.9 * a[0], "nothing was learned, so nothing was compared"
    assert all(torch.allclose(v, mine[k], atol=2e-4) for k, v in snapshot(theirs.model).items())
    assert ours.meter.spend.tokens == theirs.meter.spend.tokens
    assert ours.meter.spend.flops == theirs.meter.spend.flops
    assert ours.meter.spend.examples == theirs.meter.spend.examples
    theirs.close()


def test_with_their_own_orders_they_agree_within_the_noise_of_seeds(session: Callable[..., Session]) -> None:
    args = TrainArgs(learning_rate=3e-3, max_steps=0, per_device_train_batch_size=8)
    ends: dict[type, list[float]] = {Sft: [], HfSft: []}
    for cls, found in ends.items():
        for seed in (0, 1, 2):
            run = losses(session(20, plan=range(21), seed=seed), cls(args))
            found.append(sum(run[-5:]) / 5)
    ours, theirs = (torch.tensor(v) for v in ends.values())
    noise = float((ours.var() + theirs.var()).sqrt())
    assert abs(float(ours.mean() - theirs.mean())) < 3 * noise


def test_what_the_trainer_does_not_have_is_an_error(session: Callable[..., Session]) -> None:
    with pytest.raises(TiterError, match="optimiser of sft-hf"):
        losses(session(), HfSft(replace(WHOLE, optim="nesterov")))
    with pytest.raises(TiterError, match="lr_scheduler_type"):
        losses(session(), HfSft(replace(WHOLE, lr_scheduler_type="polynomial")))


def test_a_diverged_run_is_called_so(session: Callable[..., Session], attacked: Any) -> None:
    done = attacked(session(STEPS), HfSft(replace(WHOLE, optim="sgd", learning_rate=1e12, max_grad_norm=0.0)))
    assert done.end == "diverged"
    assert done.step < STEPS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_it_learns_what_it_learns_in_32(session: Callable[..., Session], dtype: torch.dtype) -> None:
    """At a rate whose updates a bfloat16 weight cannot hold."""

    def end(kind: torch.dtype) -> list[float]:
        mine = session(12, plan=range(13))
        mine.model = mine.model.to(kind)
        return losses(mine, HfSft(replace(WHOLE, learning_rate=1e-4)))

    whole, half = end(torch.float32), end(dtype)
    assert whole[-1] < 0.99 * whole[0]
    assert half[-1] == pytest.approx(whole[-1], rel=0.005)


def test_a_gradient_that_is_not_finite_leaves_the_weights(session: Callable[..., Session]) -> None:
    mine = session(4, plan=range(5))
    before = snapshot(mine.model)
    mine.model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(Stopped):
        losses(mine, HfSft(WHOLE))
    assert mine.end == "diverged"
    assert all(torch.equal(v, before[k]) for k, v in snapshot(mine.model).items())
