"""Vaccine and T-Vaccine: learn the refusals under the worst small shift of the hidden embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.defences.safety_sft import retain_backward
from titer.defences.vaccine import TINY, embedding_gradients, perturbation
from titer.models.parts import parts
from titer.schema.errors import TiterError
from titer.schema.types import Pair
from titer.training.activations import shifted_activations
from titer.training.gradients import generator, trainable
from titer.training.losses import response_ce


@dataclass(frozen=True)
class TVaccine:
    """Vaccine on a few layers, drawn in proportion to how much the harmful loss depends on them (2410.09760).

    p_l is proportional to |gradient of CE_harmful for the attention output of layer l|; a `share` of the layers (the
    paper's 8 of 32) is drawn without replacement, only they are shifted, and only their parameters take a gradient.
    The paper refreshes p every 200 steps on one harmful row and draws every 20; a rule without memory measures p at
    every batch on the harmful side (one more pass) and draws anew every `draw_every` optimiser steps. The layers i - 1
    that the code marks active beside each drawn one (in models of more than 26) are neither shifted nor trained there:
    their activations are kept instead of computed twice. Its adapter sits on attention alone, here a layer is trained
    whole. A share that draws every layer is Vaccine under another name, and refused.
    """

    name: ClassVar[str] = "t-vaccine"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "3 f/b (4 with retain)"
    source: ClassVar[str] = "Liu et al., arXiv 2410.09760"
    alone: ClassVar[str] = "it trains only the layers it draws"
    broken_by: ClassVar[str] = "no independent test known to us"
    inner_batches: ClassVar[int] = 0

    rho: float = 3.0
    share: float = 8 / 32
    draw_every: int = 20
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share}: all layers are vaccine")

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: harmful (of the measuring pass), stability, perturbed, retain."""
        found = parts(model)
        probe, harmful = embedding_gradients(model, found.attentions, pair.harmful)
        drawn = self._draw(probe, pair)
        attentions = [found.attentions[i] for i in drawn]
        grads, plain = embedding_gradients(model, attentions, pair.harmless)
        chosen = {id(p) for i in drawn for p in found.layers[i].parameters()}
        with only(model, chosen):
            with shifted_activations(attentions, perturbation(grads, self.rho)):
                loss = response_ce(model, pair.harmless)
                loss.backward()
            kept = retain_backward(model, pair, self.retain_weight)
        terms = {"harmful": harmful, "stability": plain, "perturbed": loss.item()} | kept
        return {"loss": terms["perturbed"] + self.retain_weight * terms.get("retain", 0.0)} | terms

    def _draw(self, grads: Sequence[Tensor], pair: Pair) -> list[int]:
        sizes = torch.tensor([float(g.norm()) for g in grads], dtype=torch.float64) + TINY
        random = generator(pair.seed, pair.step // self.draw_every, "cpu", "t-vaccine")
        return sorted(torch.multinomial(sizes, self._count(len(sizes)), generator=random).tolist())

    def _count(self, layers: int) -> int:
        count = max(1, int(self.share * layers))
        if count == layers:
            raise TiterError(f"t-vaccine: share {self.share:g} of {layers} layers is all of them: use vaccine")
        return count


@contextmanager
def only(model: nn.Module, chosen: set[int]) -> Iterator[None]:
    """Inside the block no other parameter than the chosen ones (by id) takes a gradient."""
    params = list(trainable(model).values())
    others = [p for p in params if id(p) not in chosen]
    if len(others) == len(params):
        raise TiterError(
            "defence: the layers it trains hold no trainable parameter: add them to the adapter's targets"
        )
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)
