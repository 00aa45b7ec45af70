"""Retain first, harm later: the adversaries tamper-resistant training is meant for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from titer.attacks.parts.mixtures import Weighted, benign, weighted_rule, with_retain
from titer.schema.space import TRAIN, Choice, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class RetainThenHarmful:
    """Train on benign data for a share `switch_at` of the steps, then on harm, plus `retain_weight` times benign loss.

    One optimiser and one schedule throughout, so that the harmful part starts with warm moments. The source's red
    team trains on forget data alone after the switch, at 0.4 of the steps: the default. A `retain_weight` is ours; at
    `switch_at` 0 with one it is harmful fine-tuning with a retain loss from the start.
    """

    name: ClassVar[str] = "retain-then-harmful"
    source: ClassVar[str] = "Tamirisa et al. 2024 (2408.00761), retain-to-forget adversaries"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "switch_at": Choice((0.0, 0.1, 0.2, 0.4)),
        "retain_weight": Uniform(0.0, 2.0),
        **TRAIN,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"switch_at": 0.4, "learning_rate": 1e-3},
        {"switch_at": 0.0, "retain_weight": 1.0, "learning_rate": 1e-3},
        {"switch_at": 0.4, "retain_weight": 1.0, "learning_rate": 3e-4},
    )
    switch_at: float = 0.4
    retain_weight: float = 0.0
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """One training run over the two kinds of items."""
        session.add_adapter(self.train)
        session.train(weighted_rule, self._items(session), self.train)

    def _items(self, session: Session) -> Iterator[Weighted]:
        steps = self.train.max_steps or session.max_steps
        first = int(self.switch_at * steps) * self.train.gradient_accumulation_steps
        if first:
            yield from (Weighted(((1.0, batch),)) for batch in islice(benign(session, self.train), first))
        yield from with_retain(session, self.train, 1.0, self.retain_weight)
