"""A defence made with some decoder layers frozen, by index: `frozen_layers:FrozenRepNoise` wherever a defence goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from titer.defences.repnoise import RepNoise
from titer.models.parts import parts
from titer.schema.types import Pair


@dataclass(frozen=True)
class FrozenRepNoise:
    """RepNoise as it stands, with the gradient of the decoder layers from `first` to before `last` dropped.

    Rosati et al. 2405.14577, layer-freezing ablation (the embedding, tied to the head here, still trains).
    """

    name: ClassVar[str] = "frozen-repnoise"
    stage: ClassVar[str] = RepNoise.stage
    needs: ClassVar[frozenset[str]] = RepNoise.needs
    passes: ClassVar[str] = RepNoise.passes
    source: ClassVar[str] = RepNoise.source
    broken_by: ClassVar[str] = RepNoise.broken_by
    inner_batches: ClassVar[int] = 0

    first: int = 0
    last: int = 2

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """RepNoise's terms and gradients; parameters of the frozen layers are left without a gradient."""
        terms = RepNoise().backward(model, pair)
        for layer in list(parts(model).layers)[self.first : self.last]:
            for parameter in layer.parameters():
                parameter.grad = None
        return terms
