"""LoX (low-rank extrapolation): go further along what alignment changed most, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.models.parts import parts
from titer.schema.errors import TiterError
from titer.schema.types import Pair


@dataclass(frozen=True)
class LoX:
    """W <- W + `alpha` U_k S_k V_k^T of W - W_base, for every matrix alignment changed, k = `rank` (COLM 2025).

    Embedding and head are among them, as in the code (tied ones move once); `as_published=False` leaves them out.
    Training-free: `transform` does all of it and `backward` refuses, so it is run with 0 steps.
    """

    name: ClassVar[str] = "lox"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})
    passes: ClassVar[str] = "none: one singular value decomposition a matrix"
    source: ClassVar[str] = "Perin et al., COLM 2025"
    alone: ClassVar[str] = "it edits weights and has no gradient"
    broken_by: ClassVar[str] = "tested by its authors against benign and light fine-tuning only"
    inner_batches: ClassVar[int] = 0

    rank: int = 6
    alpha: float = 1.25
    as_published: bool = True

    @torch.no_grad()
    def transform(self, model: nn.Module, base: nn.Module | None, seed: int) -> dict[str, float]:
        """Edit `model` in place; returns how many matrices moved and the mean share of the change that k captures."""
        if base is None:
            raise TiterError("lox: needs the checkpoint before alignment: pass --base_model")
        before, captured = dict(base.named_parameters()), []
        found = parts(model)
        ends = set() if self.as_published else {id(found.embedding.weight), id(found.head.weight)}
        for name, p in model.named_parameters():
            if p.ndim != 2 or id(p) in ends:
                continue
            if name not in before or before[name].shape != p.shape:
                raise TiterError(f"lox: the base model has no {name} of shape {tuple(p.shape)}: pass the right base")
            share = self._extrapolate(p, before[name])
            captured += [share] if share is not None else []
        if not captured:
            raise TiterError("lox: base and model have the same weights: pass the checkpoint before alignment")
        return {"matrices": float(len(captured)), "captured": sum(captured) / len(captured)}

    def _extrapolate(self, p: nn.Parameter, base: Tensor) -> float | None:
        change = p.double() - base.to(p.device).double()
        size = float(change.norm())
        if size == 0:
            return None
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        k = min(self.rank, len(s))
        low = (u[:, :k] * s[:k]) @ v[:k]
        p.copy_(p.double() + self.alpha * low)
        return float(low.norm()) / size

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Refuses: there is nothing to train."""
        raise TiterError("lox: edits the weights without training: run it with --max_steps 0")
