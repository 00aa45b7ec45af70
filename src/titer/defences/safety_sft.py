"""Safety SFT: more of the alignment training the model already had. The baseline every defence is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.schema.types import Pair
from titer.training.losses import response_ce


@dataclass(frozen=True)
class SafetySFT:
    """Minimise CE on the harmless answers, plus `retain_weight` x CE on `pair.retain` where there is one."""

    name: ClassVar[str] = "safety-sft"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless"})
    passes: ClassVar[str] = "1 f/b (2 with retain)"
    source: ClassVar[str] = "baseline of RepNoise, arXiv 2405.14577"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "plain harmful fine-tuning (2405.14577, table 1)"
    inner_batches: ClassVar[int] = 0

    retain_weight: float = 1.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (CE on refusals), retain."""
        loss = response_ce(model, pair.harmless)
        loss.backward()
        terms = {"stability": loss.item()} | retain_backward(model, pair, self.retain_weight)
        return {"loss": terms["stability"] + self.retain_weight * terms.get("retain", 0.0)} | terms


def retain_backward(model: nn.Module, pair: Pair, weight: float) -> dict[str, float]:
    """Add the gradient of `weight` x CE on `pair.retain`; the term by name, or nothing where it does not apply."""
    if pair.retain is None or weight == 0:
        return {}
    loss = response_ce(model, pair.retain)
    (weight * loss).backward()
    return {"retain": loss.item()}
