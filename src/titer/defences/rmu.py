"""RMU: send one layer's harmful states to a random direction, keep its benign ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from titer.defences.base import need_reference, need_retain
from titer.defences.parts.states import layer_at, reference_states, response_states
from titer.defences.t_vaccine import only
from titer.models.parts import parts
from titer.schema.errors import TiterError
from titer.schema.types import Pair
from titer.training.gradients import generator


@dataclass(frozen=True)
class RMU:
    """mse(h_l(harmful), `steering` u) + `retain_weight` x mse(h_l(retain), h_l of the reference) (2403.03218).

    u is one random direction of unit norm (uniform entries, normalised), fixed by the seed; l the layer at relative
    `depth` (7 of 32 in the paper). Only the output projections of the MLPs of layers l-2 .. l take a gradient.
    `steering` 6.5 and `retain_weight` 1200 are the paper's for Zephyr-7B, verified; they depend on the size of a
    model's states. Deviation: response tokens only, where the paper has raw text and counts every token.
    """

    name: ClassVar[str] = "rmu"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmful", "retain", "reference"})
    passes: ClassVar[str] = "2 f/b + 1 reference f"
    source: ClassVar[str] = "Li et al., arXiv 2403.03218"
    alone: ClassVar[str] = "it trains only a few projections"
    broken_by: ClassVar[str] = (
        "reported by others, not checked here: a few fine-tuning samples bring the knowledge back"
    )
    inner_batches: ClassVar[int] = 0

    steering: float = 6.5
    retain_weight: float = 1200.0
    depth: float = 7 / 32

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: forget, retain (before its weight)."""
        retain, reference = need_retain(pair, self.name), need_reference(pair, self.name)
        found = parts(model)
        layer = layer_at(self.depth, len(found.layers))
        chosen = {id(p) for mlp in found.mlps[max(0, layer - 2) : layer + 1] for p in output_projection(mlp)}
        with only(model, chosen):
            states = response_states(model, pair.harmful, [layer])
            forget = mse_loss(states, (self.steering * _direction(states, pair)).expand_as(states))
            forget.backward()
            kept = mse_loss(response_states(model, retain, [layer]), reference_states(reference, retain, [layer]))
            (self.retain_weight * kept).backward()
        terms = {"forget": forget.item(), "retain": kept.item()}
        return {"loss": terms["forget"] + self.retain_weight * terms["retain"]} | terms


def output_projection(mlp: nn.Module) -> list[nn.Parameter]:
    """Parameters of the MLP's last child that has any: its projection back to the residual stream."""
    owners = [list(child.parameters()) for child in mlp.children()]
    with_any = [ps for ps in owners if ps]
    if not with_any:
        raise TiterError(f"rmu: {type(mlp).__name__} has no projection to train")
    return with_any[-1]


def _direction(like: Tensor, pair: Pair) -> Tensor:
    random = generator(pair.seed, 0, like.device, "rmu")
    u = torch.rand(like.shape[-1], generator=random, dtype=like.dtype, device=like.device)
    unit: Tensor = u / torch.linalg.vector_norm(u)
    return unit
