"""What one step of an attack trains on when it is more than a batch, and the rules that turn it into gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from titer.schema.errors import TiterError
from titer.schema.specs import Template, TrainArgs
from titer.schema.types import Batch, Example
from titer.training.losses import answer_ce as cross_entropy
from titer.training.session import Session


@dataclass(frozen=True, slots=True)
class Weighted:
    """Batches whose mean cross-entropies are summed with weights; the first one's rows count as its examples."""

    parts: tuple[tuple[float, Batch], ...]

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids of the first batch."""
        return self.parts[0][1].input_ids


def weighted_rule(model: nn.Module, item: Weighted) -> dict[str, float]:
    """Descend the weighted sum of the batches' cross-entropies."""
    total = 0.0
    for weight, batch in item.parts:
        loss = weight * cross_entropy(model, batch)
        loss.backward()
        total += float(loss.detach())
    return {"loss": total}


def harmful(session: Session, args: TrainArgs, template: Template = Template()) -> Iterator[Batch]:
    """Endless batches of the attacker's examples, each answered as given."""
    return session.batches(session.encode(session.examples, args, template=template), args)


def benign(session: Session, args: TrainArgs) -> Iterator[Batch]:
    """Endless batches of benign examples, in an order of their own; `TiterError` when the attacker has none."""
    return session.batches(session.encode(retained(session), args), args, stream=1)


def with_retain(session: Session, args: TrainArgs, harm: float, retain: float) -> Iterator[Weighted]:
    """Endless items of a harmful and a benign batch with their weights; the benign data is not needed at weight 0."""
    if retain == 0:
        yield from (Weighted(((harm, batch),)) for batch in harmful(session, args))
    for bad, good in zip(harmful(session, args), benign(session, args), strict=False):
        yield Weighted(((harm, bad), (retain, good)))


def retained(session: Session) -> Sequence[Example]:
    """The attacker's benign examples; `TiterError` when there are none."""
    if not session.retain:
        raise TiterError("attack: needs benign examples and was given none: pass --open_dataset")
    return session.retain
