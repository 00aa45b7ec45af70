"""MLAC (self-destructing models): make the harmful task hard to learn over a short simulated fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.defences.base import need_extra
from titer.defences.parts.inner_loop import Running, simulate
from titer.defences.safety_sft import retain_backward
from titer.schema.types import Pair
from titer.training.gradients import Gradient, accumulate
from titer.training.losses import response_ce


@dataclass(frozen=True)
class MLAC:
    """min_w CE_harmless(w) - `weight` x sum_{k<K} CE_harmful(w_k), w_k after k SGD steps on `pair.extra` (2211.14946).

    First order: the gradients at w_k are applied to w. The batch that moves the attacker also measures it (none is
    held out), so K steps cost K passes. A term counts only while it is below `max_ascent` nats. Adapted to language
    models from an encoder classifier: the fresh head and the higher-order variant have no counterpart here.
    """

    name: ClassVar[str] = "mlac"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "extra"})
    passes: ClassVar[str] = "K + 1 f/b (+ 1 with retain)"
    source: ClassVar[str] = "Henderson et al., AIES 2023, arXiv 2211.14946"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "fine-tuning beyond its short horizon is outside its claim"

    inner_steps: int = 4
    inner_learning_rate: float = 1e-2
    weight: float = 0.1
    retain_weight: float = 1.0
    max_ascent: float = 20.0

    @property
    def inner_batches(self) -> int:
        """One harmful batch an inner step after the first, which takes `pair.harmful`."""
        return max(self.inner_steps - 1, 0)

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability, harmful (mean over the attacker's steps), harmful_last, retain."""
        loss = response_ce(model, pair.harmless)
        loss.backward()
        terms = {"stability": loss.item()} | retain_backward(model, pair, self.retain_weight)
        total = terms["stability"] + self.retain_weight * terms.get("retain", 0.0)
        values = self._obstruct(model, pair)
        if values:
            terms |= {"harmful": sum(values) / len(values), "harmful_last": values[-1]}
        return {"loss": total - self.weight * sum(min(v, self.max_ascent) for v in values)} | terms

    def _obstruct(self, model: nn.Module, pair: Pair) -> list[float]:
        """Add the ascent along the attacker's path; the harmful CE at each of its steps."""
        if self.weight == 0 or self.inner_steps == 0:
            return []
        values: list[float] = []
        ascent = Running()

        def before(k: int, grads: Gradient, value: float) -> None:
            values.append(value)
            ascent.add(1.0 if value < self.max_ascent else 0.0, grads)

        batches = (pair.harmful, *need_extra(pair, self.name, self.inner_batches))
        simulate(model, batches, self.inner_learning_rate, "sgd", before=before)
        accumulate(model, ascent.total, -self.weight)
        return values
