"""Harmful rows hidden among benign ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from titer.attacks.parts.mixtures import retained
from titer.schema.errors import TiterError
from titer.schema.space import TRAIN, Choice, Options, Space
from titer.schema.specs import TrainArgs
from titer.schema.types import Example
from titer.training.session import Session


@dataclass(frozen=True)
class Mixed:
    """Fine-tune on a mixture in which a share `ratio` of the rows is harmful.

    `hold="total"` fixes the rows of both kinds together at `n`, `hold="harmful"` the harmful rows alone, so that a
    smaller ratio means more benign rows around the same harm. Where either kind runs short, both shrink alike.
    """

    name: ClassVar[str] = "mixed"
    source: ClassVar[str] = "Huang et al. 2024 (2402.01109), poison ratio p"
    shards: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "ratio": Choice((0.05, 0.1, 0.2, 0.5, 0.8)),
        "hold": Choice(("total", "harmful")),
        **TRAIN,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"ratio": 0.5, "learning_rate": 1e-3},
        {"ratio": 0.1, "learning_rate": 3e-4},
    )
    ratio: float = 0.1
    n: int = 100
    hold: Literal["total", "harmful"] = "total"
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Draw the mixture by the seed and fine-tune on it."""
        bad, good = self.counts(len(session.examples), len(retained(session)))
        draw = random.Random(f"mixed/{session.seed}")
        session.fine_tune(self.train, _some(draw, session.examples, bad) + _some(draw, session.retain, good))

    def counts(self, harmful: int, benign: int) -> tuple[int, int]:
        """Rows of each kind out of those there are."""
        if not 0 < self.ratio < 1:
            raise TiterError(f"attack mixed: ratio must lie between 0 and 1, not {self.ratio}: see sft and benign")
        bad = self.n * self.ratio if self.hold == "total" else float(self.n)
        good = bad * (1 - self.ratio) / self.ratio
        shrink = min(1.0, harmful / bad, benign / good)
        return max(round(bad * shrink), 1), max(round(good * shrink), 1)


def _some(draw: random.Random, examples: Sequence[Example], count: int) -> list[Example]:
    return draw.sample(list(examples), count)
