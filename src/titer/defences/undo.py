"""UNDO: noise the weights of an aligned model, then distil the model it was back in, on what may be kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.defences.base import need_reference
from titer.defences.parts.states import kept_rows, kl
from titer.schema.types import Pair
from titer.training.gradients import generator
from titer.training.losses import response_logits


@dataclass(frozen=True)
class UNDO:
    """`transform`: w <- (1 - `noise`) w + `noise` x `scale` x fresh Xavier weights; then KL(teacher || student).

    The teacher is the frozen starting model (`pair.reference`), the data its refusals (`pair.harmless`) and benign
    answers (`pair.retain`), response tokens only. Norms and biases have no Xavier noise and only shrink to
    (1 - `noise`) w, as in the code; `as_published=False` leaves them. The paper's alpha (`noise`) runs from .1 to .8
    and its beta (`scale`) is .1, both verified. Deviations: the paper's teacher has unlearned first (GradDiff,
    MaxEnt, RMU), here it is the model as it was aligned; the paper distils on general text, every token of it. What
    was never distilled has to be learned anew.
    """

    name: ClassVar[str] = "undo"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "reference"})
    passes: ClassVar[str] = "1 f/b + 1 reference f, on the harmless and retain batches together"
    source: ClassVar[str] = "Lee et al., 2025 (distillation robustifies unlearning)"
    alone: ClassVar[str] = "it destroys weights and distils them back"
    broken_by: ClassVar[str] = "no independent test known to us"
    inner_batches: ClassVar[int] = 0

    noise: float = 0.6
    scale: float = 0.1
    as_published: bool = True

    @torch.no_grad()
    def transform(self, model: nn.Module, base: nn.Module | None, seed: int) -> dict[str, float]:
        """Noise `model` in place (`base` is not used); returns the relative weight change of what was noised."""
        moved = size = 0.0
        matrices = [p for p in model.parameters() if p.ndim == 2]
        for i, p in enumerate(matrices):
            fresh = _xavier(p, generator(seed, i, p.device, "undo"))
            new = (1 - self.noise) * p.to(fresh.dtype) + self.noise * self.scale * fresh
            moved += float((new - p).square().sum())
            size += float(p.to(fresh.dtype).square().sum())
            p.copy_(new)
        if self.as_published:
            for p in (p for p in model.parameters() if p.ndim == 1):
                p.mul_(1 - self.noise)
        return {"weight_change": math.sqrt(moved / size)}

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: distil (KL in nats)."""
        reference = need_reference(pair, self.name)
        batch = kept_rows(pair)
        with torch.no_grad():
            teacher, _ = response_logits(reference, batch)
        student, _ = response_logits(model, batch)
        loss = kl(teacher, student)
        loss.backward()
        return {"loss": loss.item(), "distil": loss.item()}


def _xavier(p: Tensor, random: torch.Generator) -> Tensor:
    """Uniform Xavier weights of p's shape, in fp32 or wider."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    bound = math.sqrt(6 / (p.shape[0] + p.shape[1]))
    return (2 * torch.rand(p.shape, generator=random, device=p.device, dtype=dtype) - 1) * bound
