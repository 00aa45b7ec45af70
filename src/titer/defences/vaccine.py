"""Vaccine and T-Vaccine: learn the refusals under the worst small shift of the hidden embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.defences.safety_sft import retain_backward
from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.activations import captured, shifted_activations
from titer.training.losses import response_ce

TINY = 1e-7


@dataclass(frozen=True)
class Vaccine:
    """min_w max_{|e| <= rho} CE_harmless with e added to the attention outputs of every layer (2402.01109).

    First pass: g_l, the gradient of the loss for the attention output of layer l. Second pass: the update's gradient
    at shifts e_l = rho g_l / (|g| + 1e-7), where |g| is one norm over all layers, tokens and rows. `rho` 2 in the
    authors' script. The retain term is unshifted and not in the paper.
    """

    name: ClassVar[str] = "vaccine"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless"})
    passes: ClassVar[str] = "2 f/b (3 with retain)"
    source: ClassVar[str] = "Huang et al., NeurIPS 2024, arXiv 2402.01109"
    broken_by: ClassVar[str] = "plain harmful fine-tuning (2405.14577, table 1)"
    inner_batches: ClassVar[int] = 0

    rho: float = 2.0
    retain_weight: float = 1.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (unshifted), perturbed (shifted), retain."""
        attentions = parts(model).attentions
        grads, plain = embedding_gradients(model, attentions, pair.harmless)
        with shifted_activations(attentions, perturbation(grads, self.rho)):
            loss = response_ce(model, pair.harmless)
            loss.backward()
        terms = {"stability": plain, "perturbed": loss.item()} | retain_backward(model, pair, self.retain_weight)
        return {"loss": terms["perturbed"] + self.retain_weight * terms.get("retain", 0.0)} | terms


def embedding_gradients(model: nn.Module, modules: Sequence[nn.Module], batch: Batch) -> tuple[list[Tensor], float]:
    """Gradient of the response CE for the output (B, T, d) of each module, and the CE."""
    with captured(modules) as outputs:
        loss = response_ce(model, batch)
    return list(torch.autograd.grad(loss, outputs)), loss.item()


def perturbation(grads: Sequence[Tensor], rho: float) -> list[Tensor]:
    """The shifts of joint norm `rho` along the gradients."""
    size = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    return [g * (rho / (size + TINY)) for g in grads]
