"""Antibody, its first stage: flatten the harmful loss as far as the alignment allows. A rule on pairs, like a defence.

It can be used before release too: `titer immunize --defence titer.guards.parts.antibody_alignment:AntibodyAlignment`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.schema.types import Pair
from titer.training.gradients import Gradient, accumulate, combine, dot, gradient, norm, shifted
from titer.training.losses import response_ce

TINY = 1e-7


@dataclass(frozen=True)
class AntibodyAlignment:
    """grad f + lambda_t (grad h(w) - grad h(w')) + `refusal_weight` grad f(w'), w' = w - `alpha` grad h / |grad h|.

    f is CE on refusals, h on harmful answers. With s the difference of the harmful gradients and a = grad f, the paper
    has lambda_t = max(0, `xi` - <s, a> / |s|^2), so that a step along the sum does flatten h. `legacy_loss=True` takes
    the authors' code, max(0, `xi` - cos(a, s)), without the moving average it keeps of it. The value of `xi` is the
    code's, for its own formula: not verified against the paper. `as_published=True` is the same as `legacy_loss=True`.
    """

    name: ClassVar[str] = "antibody-alignment"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "4 f/b"
    source: ClassVar[str] = "Nguyen et al., ICLR 2026, arXiv 2603.00498"
    broken_by: ClassVar[str] = "no independent test known to us"
    inner_batches: ClassVar[int] = 0

    alpha: float = 0.1
    xi: float = 5.0
    refusal_weight: float = 0.05
    legacy_loss: bool = False
    as_published: bool = False

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (f), harmful, harmful_after, refusal_after (at w'), weight (lambda_t)."""
        align, stability = gradient(model, lambda: response_ce(model, pair.harmless))
        here, before = gradient(model, lambda: response_ce(model, pair.harmful))
        with shifted(model, here, -self.alpha / (norm(here) + TINY)):
            there, after = gradient(model, lambda: response_ce(model, pair.harmful))
            refusal, refused = gradient(model, lambda: response_ce(model, pair.harmless))
        sharp = combine((1.0, here), (-1.0, there))
        weight = self.weight(sharp, align)
        for share, grads in ((1.0, align), (weight, sharp), (self.refusal_weight, refusal)):
            accumulate(model, grads, share)
        total = stability + weight * (before - after) + self.refusal_weight * refused
        terms = {"stability": stability, "harmful": before, "harmful_after": after, "refusal_after": refused}
        return {"loss": total} | terms | {"weight": weight}

    def weight(self, sharp: Gradient, align: Gradient) -> float:
        """lambda_t; 0 where the harmful gradient does not change, so that there is nothing to flatten."""
        size = norm(sharp)
        if size == 0:
            return 0.0
        along = dot(sharp, align) / (size * norm(align) + TINY if self.legacy_loss or self.as_published else size**2)
        return max(0.0, self.xi - along)
