"""ART (abliteration-resistant tuning): refuse even when the refusal direction has been cut out of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from titer.defences.base import need_retain
from titer.defences.targeted_lat import prompt_mask
from titer.models.parts import Parts, parts
from titer.schema.types import Batch, Pair
from titer.training.activations import captured, first, hooked
from titer.training.losses import forward, response_ce


@dataclass(frozen=True)
class ART:
    """CE_harmless - `ascent_weight` x log(1 + CE_harmful), both of the model with its refusal direction ablated.

    At every step r_l, the unit difference of mean states after layer l at the last prompt token (restricted prompts
    against `pair.retain`'s), is taken from the current model. For each layer the outputs of its attention and MLP lose
    `strength` of their part along r_l, which is the same as editing their output projections; the layer at which this
    lowers the harmful CE most is attacked. It only adds these terms: on top of another defence it is
    `repnoise+art`, alone it is best taken as `safety-sft+art`. The source was read second-hand: the ascent is put
    inside a log here so that it cannot run away.
    """

    name: ClassVar[str] = "art"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "retain"})
    passes: ClassVar[str] = "2 f/b + (layers + 2) f"
    source: ClassVar[str] = "Kuo, Yadav and Smith, arXiv 2605.26526"
    broken_by: ClassVar[str] = "made against abliteration, not against fine-tuning"
    inner_batches: ClassVar[int] = 0

    strength: float = 1.0
    ascent_weight: float = 1.0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability and harmful (CE, both ablated), layer (the one attacked)."""
        found = parts(model)
        directions = refusal_directions(model, found, pair.harmful, need_retain(pair, self.name))
        layer = self._weakest(model, found, directions, pair.harmful)
        with ablated(found, layer, directions[layer], self.strength):
            stability = response_ce(model, pair.harmless)
            stability.backward()
            harmful = response_ce(model, pair.harmful)
            (-self.ascent_weight * harmful.log1p()).backward()
        loss = stability - self.ascent_weight * harmful.log1p()
        terms = {"stability": stability.item(), "harmful": harmful.item(), "layer": float(layer)}
        return {"loss": loss.item()} | terms

    @torch.no_grad()
    def _weakest(self, model: nn.Module, found: Parts, directions: Sequence[Tensor], batch: Batch) -> int:
        losses = []
        for layer, r in enumerate(directions):
            with ablated(found, layer, r, self.strength):
                losses.append(response_ce(model, batch).item())
        return min(range(len(losses)), key=losses.__getitem__)


@torch.no_grad()
def refusal_directions(model: nn.Module, found: Parts, harmful: Batch, benign: Batch) -> list[Tensor]:
    """Per layer, the unit vector (d,) between mean states at the last prompt token."""
    means = []
    for batch in (harmful, benign):
        with captured(found.layers) as states:
            forward(model, batch)
        last = prompt_mask(batch).sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        means.append([s[rows, last].mean(0) for s in states])
    gaps = [a - b for a, b in zip(*means, strict=True)]
    return [g / g.norm().clamp_min(1e-12) for g in gaps]


@contextmanager
def ablated(found: Parts, layer: int, direction: Tensor, strength: float) -> Iterator[None]:
    """Inside the block attention and MLP of the layer write `strength` less along the direction."""

    def hook() -> Callable[..., Any]:
        def project(module: nn.Module, args: Any, output: Any) -> Any:
            h = first(output)
            cut = h - strength * (h @ direction)[..., None] * direction
            return (cut, *output[1:]) if isinstance(output, tuple) else cut

        return project

    with hooked([m.register_forward_hook(hook()) for m in (found.attentions[layer], found.mlps[layer])]):
        yield
