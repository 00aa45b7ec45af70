"""CTRAP (collapse trap): after a harmful step, the model should be close to saying one token for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.defences.parts.states import kept_rows
from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.gradients import IGNORE, accumulate, generator, gradient, norm, shifted
from titer.training.losses import response_ce

TINY = 1e-7


@dataclass(frozen=True)
class CTRAP:
    """CE on D + `weight` x collapse(w - `alpha` grad h / |grad h|), h the harmful CE (2505.16559).

    collapse is -log p(e | x, y_<t) averaged over the response tokens of D, e one fixed token; D is the harmless batch
    and, where there is one, `pair.retain`. First order: the collapse gradient at the shifted weights is applied as it
    is. The step is normalised as in the code (the paper's equation is not). The code takes e from the words "an
    error"; a defence has no tokenizer, so e is `collapse_token`, or a token drawn from the seed when negative.
    """

    name: ClassVar[str] = "ctrap"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "3 f/b, two of them on the harmless and retain batches together"
    source: ClassVar[str] = "Yi et al., ACL 2026, arXiv 2505.16559"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "reported by 2605.14605, not checked here: an adaptive fine-tuning attack"
    inner_batches: ClassVar[int] = 0

    weight: float = 0.1
    alpha: float = 0.1
    collapse_token: int = -1

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (CE on D), harmful, collapse (at the shifted weights)."""
        general = kept_rows(pair)
        loss = response_ce(model, general)
        loss.backward()
        terms = {"stability": loss.item()} | self._trap(model, pair, general)
        return {"loss": terms["stability"] + self.weight * terms.get("collapse", 0.0)} | terms

    def _trap(self, model: nn.Module, pair: Pair, general: Batch) -> dict[str, float]:
        if self.weight == 0:
            return {}
        labels = general.labels.masked_fill(general.labels != IGNORE, self._token(model, pair))
        trap = Batch(general.input_ids, general.attention_mask, labels)
        step, harmful = gradient(model, lambda: response_ce(model, pair.harmful))
        with shifted(model, step, -self.alpha / (norm(step) + TINY)):
            grads, collapse = gradient(model, lambda: response_ce(model, trap))
        accumulate(model, grads, self.weight)
        return {"harmful": harmful, "collapse": collapse}

    def _token(self, model: nn.Module, pair: Pair) -> int:
        if self.collapse_token >= 0:
            return self.collapse_token
        weight = parts(model).embedding.weight
        assert isinstance(weight, Tensor)
        return int(torch.randint(len(weight), (1,), generator=generator(pair.seed, 0, "cpu", "ctrap")))
