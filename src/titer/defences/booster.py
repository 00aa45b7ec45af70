"""Booster: make a step of harmful fine-tuning lower the harmful loss by less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.defences.safety_sft import retain_backward
from titer.schema.types import Pair
from titer.training.gradients import accumulate, gradient, norm, shifted
from titer.training.losses import response_ce

TINY = 1e-7


@dataclass(frozen=True)
class Booster:
    """min_w f(w) + `weight` x ( h(w) - h(w - `alpha` grad h / |grad h|) ), f harmless CE, h harmful CE (2409.01586).

    First order as in the paper: grad f(w) + weight (grad h(w) - grad h(w')), the derivative of w' for w left out. The
    norm is over trainable parameters, plus 1e-7, so `alpha` means something else with LoRA than in full. The retain
    term is not in the paper.
    """

    name: ClassVar[str] = "booster"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "3 f/b (4 with retain)"
    source: ClassVar[str] = "Huang et al., ICLR 2025, arXiv 2409.01586"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "attack rates of 8e-5 and more (2505.12186)"
    inner_batches: ClassVar[int] = 0

    weight: float = 5.0
    alpha: float = 0.1
    retain_weight: float = 1.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability, harmful (at w), harmful_after (at w'), drop (their difference), retain."""
        loss = response_ce(model, pair.harmless)
        loss.backward()
        terms = {"stability": loss.item()} | self._flatten(model, pair)
        terms |= retain_backward(model, pair, self.retain_weight)
        total = terms["stability"] + self.weight * terms.get("drop", 0.0)
        return {"loss": total + self.retain_weight * terms.get("retain", 0.0)} | terms

    def _flatten(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        if self.weight == 0:
            return {}
        here, before = gradient(model, lambda: response_ce(model, pair.harmful))
        with shifted(model, here, -self.alpha / (norm(here) + TINY)):
            there, after = gradient(model, lambda: response_ce(model, pair.harmful))
        accumulate(model, here, self.weight)
        accumulate(model, there, -self.weight)
        return {"harmful": before, "harmful_after": after, "drop": before - after}
