"""Adversarial loss: stay on the refusals while climbing the harmful loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.defences.base import capped
from titer.defences.safety_sft import retain_backward
from titer.schema.types import Pair
from titer.training.losses import response_ce


@dataclass(frozen=True)
class AdversarialLoss:
    """Minimise CE_harmless - `ascent_weight` x CE_harmful (2405.14577 eq. 4, the demonstration of 2402.16382).

    `log=True` takes log(1 + CE_harmful) instead, whose gradient dies down as the loss grows. Without it the harmful
    term stops at `max_ascent` nats. The paper's weight for Llama-2 is 0.1.
    """

    name: ClassVar[str] = "adversarial-loss"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "2 f/b (3 with retain)"
    source: ClassVar[str] = "Rosati et al., arXiv 2402.16382; 2405.14577 eq. 4"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "plain harmful fine-tuning with more data or a higher rate (2405.14577, table 1)"
    inner_batches: ClassVar[int] = 0

    ascent_weight: float = 0.1
    retain_weight: float = 1.0
    log: bool = False
    max_ascent: float = 100.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability, harmful (CE before log or bound), ascent (after), retain."""
        stability = response_ce(model, pair.harmless)
        stability.backward()
        terms = {"stability": stability.item()} | self._ascend(model, pair)
        terms |= retain_backward(model, pair, self.retain_weight)
        loss = terms["stability"] - self.ascent_weight * terms.get("ascent", 0.0)
        return {"loss": loss + self.retain_weight * terms.get("retain", 0.0)} | terms

    def _ascend(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        if self.ascent_weight == 0:
            return {}
        harmful = response_ce(model, pair.harmful)
        ascent = harmful.log1p() if self.log else capped(harmful, self.max_ascent)
        (-self.ascent_weight * ascent).backward()
        return {"harmful": harmful.item(), "ascent": ascent.item()}
