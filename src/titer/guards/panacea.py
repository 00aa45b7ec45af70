"""Panacea: learn, along with the task, a shift of the weights that hurts harm most, and add it at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.guards.base import DURING, Tuning
from titer.schema.types import Batch
from titer.training.gradients import Gradient, accumulate, combine, gradient, norm, shifted, trainable
from titer.training.losses import response_ce

TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Both:
    """A batch of the user's rows and one of the provider's harmful ones."""

    user: Batch
    harmful: Batch

    @property
    def input_ids(self) -> Tensor:
        """Token ids of the user's rows."""
        return self.user.input_ids


@dataclass(frozen=True)
class Panacea:
    """max_{|e| <= rho} min_w g(w) + `weight` (h(w) - h(w + e)); after the last step w <- w + e.

    e = `rho` grad h / |grad h| at every step, and the step's gradient is grad g + weight (grad h(w) - grad h(w + e)):
    first order. The norm is over trainable parameters, so `rho` means something else with LoRA than in full. The
    authors' code clips h(w + e) at 5 nats, beyond which its gradient is zero, and then differentiates a name it never
    defines: not reproduced. Its e is the `.grad` of the harmful pass itself, which lives on because `zero_grad` lets
    go of it; where that fills it with zeros (torch before 2.0) e becomes zero: not reproduced either.
    """

    name: ClassVar[str] = "panacea"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety", "harmful"})
    passes: ClassVar[str] = "3 f/b"
    source: ClassVar[str] = "Wang et al., NeurIPS 2025, arXiv 2501.18100"
    broken_by: ClassVar[str] = "no independent test known to us"

    rho: float = 1.0
    weight: float = 1e-3

    def tune(self, job: Tuning) -> None:
        """Tune, then add the last shift."""
        session = job.session
        session.add_adapter(job.args)
        last: Gradient = {}
        session.train(lambda model, item: self.backward(model, item, last), self.items(job), job.args)
        with torch.no_grad():
            for name, p in trainable(session.model).items():
                p.add_(last[name])

    def items(self, job: Tuning) -> Iterator[Both]:
        """Endless pairs of batches."""
        for user, harmful in zip(job.user_batches(), job.safety_batches("harmful"), strict=False):
            yield Both(user, harmful)

    def backward(self, model: nn.Module, item: Both, last: Gradient) -> dict[str, float]:
        """Terms: ce, harmful (at w), harmful_after (at w + e); `last` becomes e."""
        loss = response_ce(model, item.user)
        loss.backward()
        here, before = gradient(model, lambda: response_ce(model, item.harmful))
        last |= combine((self.rho / (norm(here) + TINY), here))
        with shifted(model, last, 1.0):
            there, after = gradient(model, lambda: response_ce(model, item.harmful))
        accumulate(model, here, self.weight)
        accumulate(model, there, -self.weight)
        total = loss.item() + self.weight * (before - after)
        return {"loss": total, "ce": loss.item(), "harmful": before, "harmful_after": after}
