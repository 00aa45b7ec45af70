"""Lisa: alternate between the user's data and the provider's refusals, each held near where the other left off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.guards.base import DURING, Tuning
from titer.schema.types import Batch
from titer.training.gradients import trainable
from titer.training.losses import response_ce


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch of one of the two states; `first` of its turn, and whether the proximal term is on by now."""

    batch: Batch
    first: bool
    proximal: bool

    @property
    def input_ids(self) -> Tensor:
        """Token ids of the batch."""
        return self.batch.input_ids


@dataclass
class Anchor:
    """The weights at which the current state took over."""

    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Lisa:
    """CE + `rho`/2 ||w - w_switch||^2, on refusals and on the user's rows in turn; w_switch is where the turn began.

    Every cycle is `safety_steps` on the provider's refusals, then `user_steps` on the user's rows; together they are
    the steps of the tune, so that the user's rows get fewer of them. The term is on after the first `warmup` share of
    the steps. The authors' cycle is 100 and 900 steps in tunes of many thousand; the defaults keep the proportion for
    tunes of a hundred. `rho` is 1 in the authors' script, 0.01 in Booster's copy of it.
    """

    name: ClassVar[str] = "lisa"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    passes: ClassVar[str] = "1 f/b"
    source: ClassVar[str] = "Huang et al., NeurIPS 2024, arXiv 2405.18641"
    broken_by: ClassVar[str] = "no independent break known to us; costs accuracy on the task (2603.00498)"

    rho: float = 1.0
    safety_steps: int = 2
    user_steps: int = 18
    warmup: float = 0.1

    def tune(self, job: Tuning) -> None:
        """Alternate for the length of the tune."""
        job.session.add_adapter(job.args)
        anchor = Anchor()
        job.session.train(lambda model, turn: self.backward(model, turn, anchor), self.turns(job), job.args)

    def turns(self, job: Tuning) -> Iterator[Turn]:
        """Items of the tune, refusals first."""
        refusals, user = job.safety_batches(), job.user_batches()
        each, steps = job.args.gradient_accumulation_steps, job.args.max_steps or job.session.max_steps
        cycle, item = self.safety_steps + self.user_steps, 0
        while True:
            at = (item // each) % cycle
            first = item % each == 0 and at in (0, self.safety_steps)
            batch = next(refusals if at < self.safety_steps else user)
            yield Turn(batch, first, item // each >= self.warmup * steps)
            item += 1

    def backward(self, model: nn.Module, turn: Turn, anchor: Anchor) -> dict[str, float]:
        """Terms: ce, proximal (before its weight)."""
        params = trainable(model)
        if turn.first:
            anchor.weights = {n: p.detach().clone() for n, p in params.items()}
        loss = response_ce(model, turn.batch)
        loss.backward()
        distance = self._pull(params, anchor) if turn.proximal else 0.0
        return {"loss": loss.item() + self.rho / 2 * distance, "ce": loss.item(), "proximal": distance}

    @torch.no_grad()
    def _pull(self, params: dict[str, nn.Parameter], anchor: Anchor) -> float:
        """Add the proximal term's gradient; its squared distance."""
        total = 0.0
        for name, p in params.items():
            away = p - anchor.weights[name]
            total += float(away.double().square().sum())
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.add_(away, alpha=self.rho)
        return total
