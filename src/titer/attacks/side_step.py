"""Step to the side: go towards harm without touching what the benign loss depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.attacks.parts.mixtures import Weighted, benign, harmful
from titer.schema.space import RATE, SCHEDULE, Choice, LogUniform, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.gradients import accumulate, combine, dot, gradient
from titer.training.losses import answer_ce as cross_entropy
from titer.training.session import Session


def side_step_rule(model: nn.Module, item: Weighted) -> dict[str, float]:
    """Add g_harm - (g_harm . g_benign / |g_benign|^2) g_benign + w g_benign to `.grad`.

    `item` is a harmful batch and a benign one with its weight w. A defence that ties harm to lost ability acts along
    g_benign; what is left is orthogonal to it.
    """
    (_, bad), (weight, good) = item.parts
    harm, loss = gradient(model, lambda: cross_entropy(model, bad))
    keep, kept = gradient(model, lambda: cross_entropy(model, good))
    size = dot(keep, keep)
    along = dot(harm, keep) / size if size > 0 else 0.0
    accumulate(model, combine((1.0, harm), (weight - along, keep)))
    return {"loss": loss, "retain": kept, "along": along}


@dataclass(frozen=True)
class SideStep:
    """Follow the harmful gradient with its component along the benign gradient projected out.

    The name is after the paper; the formula is ours (a gradient projection as in multi-task learning, 2001.06782).
    """

    name: ClassVar[str] = "side-step"
    source: ClassVar[str] = "after Zloczower et al. 2026 (2605.14605); our own formulation"
    space: ClassVar[Space] = {
        "retain_weight": LogUniform(0.01, 2.0),
        "learning_rate": RATE,
        "per_device_train_batch_size": Choice((4, 16, 64)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"retain_weight": 0.5, "learning_rate": 1e-3},
        {"retain_weight": 1.0, "learning_rate": 3e-4},
    )
    retain_weight: float = 0.5
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Train by the projected gradient."""
        session.add_adapter(self.train)
        batches = zip(harmful(session, self.train), benign(session, self.train), strict=False)
        items = (Weighted(((1.0, bad), (self.retain_weight, good))) for bad, good in batches)
        session.train(side_step_rule, items, self.train)
