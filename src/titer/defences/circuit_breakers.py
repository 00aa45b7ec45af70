"""Circuit breakers (representation rerouting): turn harmful states away from where they pointed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from titer.defences.base import need_reference
from titer.defences.parts.states import join, layer_at, reference_states, response_states
from titer.models.parts import parts
from titer.schema.types import Pair


@dataclass(frozen=True)
class CircuitBreakers:
    """c_s ReLU(cos(h(harmful), h_ref)) + c_r |h(kept) - h_ref|, c_s = a (1 - t/2T), c_r = a t/2T (2406.04313).

    Means over response tokens and the layers at relative `depths` (10 and 20 of 32); t is `pair.step`, T
    `pair.steps`. What is kept is the harmless batch and, where there is one, `pair.retain`. At the start both terms
    have no gradient (cos = 1, no gap), so it takes steps and a rate that rounding can start from.
    """

    name: ClassVar[str] = "circuit-breakers"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "reference"})
    passes: ClassVar[str] = "2 f/b + 2 reference f"
    source: ClassVar[str] = "Zou et al., arXiv 2406.04313"
    broken_by: ClassVar[str] = "made against jailbreaks, not against fine-tuning"
    inner_batches: ClassVar[int] = 0

    alpha: float = 10.0
    depths: tuple[float, ...] = (10 / 32, 20 / 32)

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: reroute and retain, before their weights."""
        reference = need_reference(pair, self.name)
        count = len(parts(model).layers)
        layers = sorted({layer_at(d, count) for d in self.depths})
        late = pair.step / (2 * pair.steps)
        reroute = _cosine(model, reference, pair, layers)
        (self.alpha * (1 - late) * reroute).backward()
        kept = pair.harmless if pair.retain is None else join(pair.harmless, pair.retain)
        gap = response_states(model, kept, layers) - reference_states(reference, kept, layers)
        retain = gap.norm(dim=-1).mean()
        (self.alpha * late * retain).backward()
        terms = {"reroute": reroute.item(), "retain": retain.item()}
        return {"loss": self.alpha * ((1 - late) * terms["reroute"] + late * terms["retain"])} | terms


def _cosine(model: nn.Module, reference: nn.Module, pair: Pair, layers: list[int]) -> Tensor:
    states = response_states(model, pair.harmful, layers)
    return cosine_similarity(states, reference_states(reference, pair.harmful, layers), dim=-1).relu().mean()
