"""Antidote: after the tune, zero the part of the update that harmful prompts use most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from titer.guards.base import AFTER, Tuning
from titer.guards.parts.matrices import adapters, matrices, oriented, seen_inputs
from titer.schema.errors import TiterError
from titer.training.gradients import wide


@dataclass(frozen=True)
class Antidote:
    """Zero the `ratio` of each output row of an update with the largest |U_ij| x |X_j| (Wanda), X from harmful rows.

    U are the adapter's matrices A and B where there is an adapter, as in the authors' code, and W - W_before of every
    linear map of the decoder layers after a full fine-tune: what is pruned goes back to what it was. X_j is a matrix'
    j-th input over all tokens of the provider's harmful rows. `score="magnitude"` leaves X out and needs no data.

    Of n entries int(n (1 - ratio)) are kept, as in the code, so that a row of A or B always loses one or more: of B 2
    of 16 at ratio .1 and rank 16.
    """

    name: ClassVar[str] = "antidote"
    stage: ClassVar[str] = AFTER
    needs: ClassVar[frozenset[str]] = frozenset({"safety", "harmful", "reference"})
    passes: ClassVar[str] = "once: 1 f on the harmful rows"
    source: ClassVar[str] = "Huang et al., ICML 2025, arXiv 2408.09600"
    broken_by: ClassVar[str] = "no independent test known to us"

    ratio: float = 0.1
    score: Literal["wanda", "magnitude"] = "wanda"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must lie between 0 and 1, not {self.ratio}")

    @torch.no_grad()
    def repair(self, job: Tuning) -> None:
        """Prune; notes the share of the updates' entries that were."""
        targets = list(updates(job))
        sizes = self._input_norms(job, [module for module, _ in targets])
        removed = total = 0
        for (module, origin), size in zip(targets, sizes, strict=True):
            weight = oriented(module, module.get_parameter("weight"))
            mask = top((weight - origin).abs().to(size.dtype) * size, self.ratio)
            weight[mask] = origin.to(weight.dtype)[mask]
            removed, total = removed + int(mask.sum()), total + mask.numel()
        job.notes["pruned"] = removed / max(total, 1)

    def _input_norms(self, job: Tuning, modules: list[nn.Module]) -> list[Tensor]:
        """|X_j| of every input of each module, (in,)."""
        weights = [oriented(m, m.get_parameter("weight")) for m in modules]
        if self.score == "magnitude":
            return [torch.ones(w.shape[1], dtype=wide(w.dtype), device=w.device) for w in weights]
        sums = [torch.zeros(w.shape[1], dtype=wide(w.dtype), device=w.device) for w in weights]
        for inputs in seen_inputs(job, modules, "harmful"):
            for total, x in zip(sums, inputs, strict=True):
                total += x.to(total.dtype).square().sum(0)
        return [s.sqrt() for s in sums]


def updates(job: Tuning) -> Iterator[tuple[nn.Module, Tensor]]:
    """The modules that hold the fine-tuning update, each with the matrix (out, in) it is counted from."""
    found = adapters(job.session.model)
    for adapter in found:
        for module in (adapter.down, adapter.up):
            yield module, torch.zeros_like(module.get_parameter("weight"))
    if not found:
        if job.before is None:
            raise TiterError("guard antidote: needs the weights before the fine-tune")
        before = dict(job.before)
        for matrix in matrices(job.session.model):
            yield matrix.module, matrix.of(before)


def top(score: Tensor, ratio: float) -> Tensor:
    """Where the `ratio` largest entries of each row are, boolean: what is kept is rounded down, as in the code."""
    size = score.shape[1]
    count = size - int(size * (1 - ratio))
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask if count == 0 else mask.scatter(1, score.topk(count, dim=1).indices, True)
