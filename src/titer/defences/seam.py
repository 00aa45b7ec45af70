"""SEAM (self-destructive language model): tie harmful descent to benign ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from titer.defences.base import need_retain
from titer.defences.repnoise import mean_ascent, observe
from titer.defences.safety_sft import retain_backward
from titer.models.parts import parts
from titer.schema.types import Pair
from titer.training.gradients import Gradient, accumulate, combine, dot, gradient, norm, shifted
from titer.training.losses import response_ce

TINY = 1e-12


@dataclass(frozen=True)
class SEAM:
    """-log(1 + layer-wise harmful CE) + `stability_weight` x CE_harmless + `weight` x cos(g_a, g_b) (2505.12186).

    g_a, g_b are the gradients of the harmful and of the benign (`pair.retain`) CE. Their cosine's gradient comes
    without second derivatives, from two shifted gradients, with unit vectors a, b and c = cos:
    (1/eps) [ (g_b(w + eps (a - c b)) - g_b) / |g_b| + (g_a(w + eps (b - c a)) - g_a) / |g_a| ].
    The layer-wise term is RepNoise's, over all response tokens. The code ignores the pad (= eos) id by value and so
    never trains the stop token; here padding is masked and the stop token trains. In bf16 `eps` 1e-3 is near
    rounding: keep fp32 weights. `retain_weight` x CE on the benign data is not in the paper: without it the ascent
    takes a small model's open knowledge along. Its gradient is g_b and costs no pass.
    """

    name: ClassVar[str] = "seam"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "retain"})
    passes: ClassVar[str] = "6 f/b + the head on every layer"
    source: ClassVar[str] = "Wang et al., ICLR 2026, arXiv 2505.12186"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "no independent fine-tuning test known to us"
    inner_batches: ClassVar[int] = 0

    stability_weight: float = 1.0
    weight: float = 1e-2
    eps: float = 1e-3
    ascent_weight: float = 1.0
    retain_weight: float = 1.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability, ascent (layer-wise mean), harmful, retain (benign CE), cosine."""
        stability = response_ce(model, pair.harmless)
        (self.stability_weight * stability).backward()
        terms = {"stability": stability.item()} | self._ascend(model, pair) | self._couple(model, pair)
        loss = self.stability_weight * terms["stability"] - self.ascent_weight * math.log1p(terms.get("ascent", 0.0))
        loss += self.weight * terms.get("cosine", 0.0) + self.retain_weight * terms.get("retain", 0.0)
        return {"loss": loss} | terms

    def _ascend(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        if self.ascent_weight == 0:
            return {}
        found = parts(model)
        states, _ = observe(model, found, pair.harmful)
        mean, _ = mean_ascent(model, found, states, pair.harmful.labels)
        (-self.ascent_weight * mean.log1p()).backward()
        return {"ascent": mean.item()}

    def _couple(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        if self.weight == 0:
            return retain_backward(model, pair, self.retain_weight)
        retain = need_retain(pair, self.name)
        harm, harmful = gradient(model, lambda: response_ce(model, pair.harmful))
        good, benign = gradient(model, lambda: response_ce(model, retain))
        sizes = norm(harm) + TINY, norm(good) + TINY
        cosine = dot(harm, good) / (sizes[0] * sizes[1])
        a, b = combine((1 / sizes[0], harm)), combine((1 / sizes[1], good))
        self._add(model, lambda: response_ce(model, retain), combine((1.0, a), (-cosine, b)), good, sizes[1])
        self._add(model, lambda: response_ce(model, pair.harmful), combine((1.0, b), (-cosine, a)), harm, sizes[0])
        accumulate(model, good, self.retain_weight)
        return {"harmful": harmful, "retain": benign, "cosine": cosine}

    def _add(self, model: nn.Module, loss: Callable[[], Tensor], along: Gradient, here: Gradient, size: float) -> None:
        """Add weight x (gradient at w + eps x along - gradient here) / (eps x size)."""
        with shifted(model, along, self.eps):
            there, _ = gradient(model, loss)
        accumulate(model, combine((1.0, there), (-1.0, here)), self.weight / (self.eps * size))
