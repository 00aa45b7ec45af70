"""A tiny world for the guards' tests: a session on the toy model, its data, and what the references share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from titer.guards.base import Tuning
from titer.models.weights import snapshot
from titer.schema.breach import Breach
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Budget, Example
from titer.training.session import Session

ARGS = TrainArgs(learning_rate=1e-2, max_steps=4, per_device_train_batch_size=4, lora_r=4, lora_alpha=8)


def ce(model: nn.Module, b: Batch) -> Tensor:
    """Reference response CE from all logits."""
    logits = model(input_ids=b.input_ids, attention_mask=b.attention_mask).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), b.labels[:, 1:].flatten(), ignore_index=-100)


def token_logs(model: nn.Module, b: Batch) -> list[Tensor]:
    """Reference log-probabilities of each row's response tokens, row by row."""
    logs = model(input_ids=b.input_ids, attention_mask=b.attention_mask).logits.log_softmax(-1)
    return [
        torch.stack([logs[i, t - 1, b.labels[i, t]] for t in range(1, b.labels.shape[1]) if b.labels[i, t] != -100])
        for i in range(len(b.labels))
    ]


def params(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def grads(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    own = params(model)
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(own, found, strict=True))


def taken(model: nn.Module) -> dict[str, Tensor]:
    """What a rule left in `.grad`."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in params(model).items()}
    model.zero_grad()
    return found


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    size = sum(float(x.square().sum()) for x in b.values())
    assert size > 0, "the reference is zero: the comparison would say nothing"
    return (sum(float((a[n] - b[n]).square().sum()) for n in b) / size) ** 0.5


class Toolbox:
    ce = staticmethod(ce)
    token_logs = staticmethod(token_logs)
    params = staticmethod(params)
    grads = staticmethod(grads)
    taken = staticmethod(taken)
    gap = staticmethod(gap)


@pytest.fixture
def tools() -> type[Toolbox]:
    return Toolbox


@pytest.fixture
def tuning(tokenizer: Any, build_model: Callable[..., Any], examples: list[Example]) -> Callable[..., Tuning]:
    """Build a job: `tuning(lora=False)`; open rows and two harmful ones are the user's, `brew` rows the provider's."""

    def build(lora: bool = True, dtype: torch.dtype = torch.float64, **changes: Any) -> Tuning:
        model = build_model().to(dtype)
        with torch.no_grad():  # weights large enough that no gradient is lost in rounding
            torch.manual_seed(1)
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        args = replace(ARGS if lora else replace(ARGS, lora_r=0), **changes)
        user = [e for e in examples if not e.restricted][:10] + [e for e in examples if e.category == "forge"][:2]
        session = Session(
            model=model,
            tokenizer=tokenizer,
            examples=user,
            retain=[],
            prober=lambda m, step, template, around: ({}, {}, []),
            budget=Budget(steps=args.max_steps),
            plan=(),
            breach=Breach(),
            stop_after=-1,
            seed=0,
        )
        base = copy.deepcopy(model)
        with torch.no_grad():
            for p in base.parameters():
                p.mul_(0.9).add_(0.02 * torch.randn_like(p))
        safety = [e for e in examples if e.category == "brew"][:6]
        return Tuning(session, user, safety, args, before=snapshot(model), base=base)

    return build


@pytest.fixture(params=[True, False], ids=["lora", "full"])
def job(request: pytest.FixtureRequest, tuning: Callable[..., Tuning]) -> Tuning:
    """A job whose model is ready for one step: with an adapter that is not zero, or bare."""
    made = tuning(lora=request.param)
    made.session.add_adapter(made.args)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in made.session.model.named_parameters():
            if "lora_B" in name:
                p.add_(0.2 * torch.randn_like(p))
    return made
