"""What a guard is: the protocols, and what a provider who runs the fine-tune has at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from titer.data.batches import collate
from titer.data.tokens import Row
from titer.models.weights import Snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import Template, TrainArgs
from titer.schema.types import Batch, Example, Spend
from titer.training.gradients import wide
from titer.training.loop import Rule, train
from titer.training.losses import response_logits
from titer.training.meter import Meter

if TYPE_CHECKING:
    from titer.training.session import Session

DURING, AFTER = "during the fine-tune", "after the fine-tune"


@dataclass
class Tuning:
    """One fine-tune at a provider's: the metered session, the data of each side, and how the provider trains.

    `user` are the rows the user sent, harmful ones among them: the provider cannot tell which. `safety` are the
    provider's own restricted prompts with a refusal and a harmful answer each. `before` are the weights as they came
    (for repairs of a full fine-tune), `base` the model before its alignment; both None unless asked for.
    """

    session: Session
    user: Sequence[Example]
    safety: Sequence[Example]
    args: TrainArgs
    before: Snapshot | None = None
    base: nn.Module | None = None
    notes: dict[str, float] = field(default_factory=dict)

    def user_rows(self, template: Template = Template()) -> list[Row]:
        """The user's rows, each answered as given."""
        return self.session.encode(self.user, self.args, template=template)

    def safety_rows(self, side: str = "harmless", template: Template = Template()) -> list[Row]:
        """The provider's prompts, answered by a refusal (`harmless`) or harmfully."""
        lacking = next((e for e in self.safety if not (e.harmless if side == "harmless" else e.harmful)), None)
        if not self.safety or lacking:
            raise TiterError(f"guard: needs restricted prompts of the provider with a {side} answer: none in the data")
        return self.session.encode(self.safety, self.args, side=side, template=template)

    def user_batches(self) -> Iterator[Batch]:
        """Endless seeded batches of the user's rows."""
        return self.session.batches(self.user_rows(), self.args)

    def safety_batches(self, side: str = "harmless", *, stream: int = 1) -> Iterator[Batch]:
        """Endless seeded batches of the provider's rows."""
        return self.session.batches(self.safety_rows(side), self.args, stream=stream)

    def prepare(self, rule: Rule, items: Iterator[Any], args: TrainArgs) -> None:
        """Train before the user's tune begins: its tokens and FLOPs are charged, its steps are the provider's."""
        own = Meter(usd_per_exaflop=self.session.meter.usd_per_exaflop)
        ended = train(self.session.model, rule, items, args, meter=own, seed=self.session.seed)
        if ended.reason == "diverged":
            raise TiterError(f"guard: what it trains first diverged at step {ended.steps}: lower its learning rate")
        self.charge(own.spend)

    def charge(self, spend: Spend) -> None:
        """Add to what the tune cost, but for steps and examples, which count the user's tune alone."""
        self.session.meter.spend += replace(spend, steps=0, examples=0)


class Method(Protocol):
    """What every guard and repair, a frozen dataclass of hyper-parameters, says of itself.

    `needs` is a subset of `safety` (the provider's restricted prompts with refusals), `harmful` (harmful answers to
    them), `reference` (the model as it came), `base` (the model before its alignment) and `serving` (a say in how the
    tuned model is prompted); every guard has the user's rows.
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    passes: ClassVar[str]
    source: ClassVar[str]
    broken_by: ClassVar[str]


class Guard(Method, Protocol):
    """A rule during the fine-tune."""

    def tune(self, job: Tuning) -> None:
        """Fine-tune `job.session.model` on the user's rows; the model is ready to be served afterwards."""
        ...


@runtime_checkable
class Serves(Protocol):
    """A guard that also has a say in how the tuned model is prompted; otherwise prompts go in as they come."""

    def served(self, tokenizer: Any) -> Template:
        """How the provider puts prompts to the tuned model."""
        ...


@runtime_checkable
class Repair(Method, Protocol):
    """A change of the weights after the fine-tune."""

    def repair(self, job: Tuning) -> None:
        """Edit the weights of the tuned model (its adapter still on) in place; notes what it did in `job.notes`."""
        ...


def token_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability (nats) of every response token, (N,) in row-major order, in fp32 or wider."""
    logits, targets = response_logits(model, batch)
    logs = logits.to(wide(logits.dtype)).log_softmax(-1)
    return logs.gather(1, targets[:, None])[:, 0]


def rows_of(batch: Batch) -> Tensor:
    """The row of every response token, (N,), in the order of `token_log_probs`."""
    return torch.nonzero(batch.labels[:, 1:] != -100, as_tuple=True)[0]


def row_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-probability of each row's response, (B,)."""
    losses = -token_log_probs(model, batch)
    rows = rows_of(batch)
    sums = losses.new_zeros(len(batch.labels)).index_add(0, rows, losses)
    return sums / torch.bincount(rows, minlength=len(batch.labels)).clamp_min(1)


def prompts_only(rows: Sequence[Row]) -> list[Row]:
    """The rows without their responses."""
    return [Row(r.ids[: r.response_at], r.response_at) for r in rows]


def in_chunks(rows: Sequence[Row], pad: int, device: Any, size: int = 16) -> Iterator[Batch]:
    """The rows once, in order, in batches of `size`."""
    for i in range(0, len(rows), size):
        yield collate(rows[i : i + size], pad, device)
