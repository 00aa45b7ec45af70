"""The simulated attacker inside a defence: a few optimiser steps on harmful batches, then everything is put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from titer.schema.types import Batch
from titer.training.gradients import Gradient, gradient, own_grad, restored, trainable, weights_changed
from titer.training.losses import response_ce

Optim = Literal["adamw", "sgd"]
Before = Callable[[int, Gradient, float], None]
After = Callable[[int], None]


def simulate(
    model: nn.Module,
    batches: Sequence[Batch],
    learning_rate: float,
    optim: Optim,
    *,
    weight_decay: float = 0.0,
    before: Before | None = None,
    after: After | None = None,
) -> None:
    """Fine-tune on the batches one by one; weights and `.grad` are back, bit for bit, when it returns.

    `before(k, gradient, CE)` sees the attacker's own gradient at w_k, k = 0 .. K-1; `after(k)` is called at w_k,
    k = 1 .. K. `weight_decay` is AdamW's.
    """
    params = trainable(model)
    with restored(model), own_grad(params.values()):
        optimiser = _optimiser(list(params.values()), learning_rate, optim, weight_decay)
        for k, batch in enumerate(batches):
            grads, value = gradient(model, lambda b=batch: response_ce(model, b))  # type: ignore[misc]
            if before:
                before(k, grads, value)
            for name, p in params.items():
                p.grad = grads[name]
            optimiser.step()
            weights_changed()
            if after:
                after(k + 1)


def _optimiser(
    params: list[nn.Parameter], learning_rate: float, optim: Optim, weight_decay: float
) -> torch.optim.Optimizer:
    if optim == "sgd":
        return torch.optim.SGD(params, lr=learning_rate)
    return torch.optim.AdamW(params, lr=learning_rate, weight_decay=weight_decay, foreach=True)


class Running:
    """A weighted sum of gradients that grows term by term."""

    def __init__(self) -> None:
        self.total: Gradient = {}

    @torch.no_grad()
    def add(self, weight: float, grads: Gradient) -> None:
        """Add `weight * grads`."""
        for name, g in grads.items():
            if name in self.total:
                self.total[name].add_(g, alpha=weight)
            else:
                self.total[name] = g * weight
