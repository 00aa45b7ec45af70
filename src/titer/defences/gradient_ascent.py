"""Gradient ascent on the harmful answers: the crudest immunization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.defences.base import capped
from titer.defences.safety_sft import retain_backward
from titer.schema.types import Pair
from titer.training.losses import response_ce


@dataclass(frozen=True)
class GradientAscent:
    """Minimise -min(CE_harmful, `max_ascent`), plus `retain_weight` x CE on `pair.retain` where there is one.

    The paper's baseline has no bound and no retain term; the bound (nats) only stops a loss that is already far past
    ln V from growing for ever.
    """

    name: ClassVar[str] = "gradient-ascent"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})
    passes: ClassVar[str] = "1 f/b (2 with retain)"
    source: ClassVar[str] = "baseline of RepNoise, arXiv 2405.14577"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = (
        "plain harmful fine-tuning (2405.14577, table 1); destroys the model without retain data"
    )
    inner_batches: ClassVar[int] = 0

    retain_weight: float = 1.0
    max_ascent: float = 100.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: harmful (CE before the bound), retain."""
        harmful = response_ce(model, pair.harmful)
        loss = -capped(harmful, self.max_ascent)
        loss.backward()
        terms = {"harmful": harmful.item()} | retain_backward(model, pair, self.retain_weight)
        return {"loss": loss.item() + self.retain_weight * terms.get("retain", 0.0)} | terms
