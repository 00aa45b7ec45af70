"""SafeLoRA: after the tune, project updates that leave the direction of alignment back onto it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from titer.guards.base import AFTER, Tuning
from titer.guards.parts.matrices import adapters, matrices, oriented
from titer.schema.errors import TiterError
from titer.training.gradients import wide


@dataclass(frozen=True)
class Layer:
    """One matrix' update (out, in), what alignment changed there, and how to put a projection C in front of it."""

    update: Tensor
    alignment: Tensor
    project: Callable[[Tensor], None]


@dataclass(frozen=True)
class SafeLoRA:
    """For every matrix with cos(C U, U) <= `threshold`: U <- C U, with C = V V^T / |V|_F, V = W_aligned - W_base.

    U is the update: scaling x B A of an adapter (B <- C B), W - W_before after a full fine-tune. `layers` above 0
    projects that many matrices, those with the smallest cosine, whatever the threshold; the authors' configuration has
    10, their paper a threshold of .35. C is no projection in the strict sense: it also shrinks what it keeps. Matrices
    that alignment or the tune left alone are left alone.
    """

    name: ClassVar[str] = "safelora"
    stage: ClassVar[str] = AFTER
    needs: ClassVar[frozenset[str]] = frozenset({"reference", "base"})
    passes: ClassVar[str] = "none: three matrix products a matrix"
    source: ClassVar[str] = "Hsu et al., NeurIPS 2024, arXiv 2405.16833"
    broken_by: ClassVar[str] = "reported by others, not checked here: purely harmful data at high rates"

    threshold: float = 0.35
    layers: int = 0

    @torch.no_grad()
    def repair(self, job: Tuning) -> None:
        """Project; notes how many matrices were, of how many."""
        measured = [(cosine(projection(x.alignment), x.update), i, x) for i, x in enumerate(found(job))]
        measured.sort(key=lambda m: m[:2])
        chosen = measured[: self.layers] if self.layers else [m for m in measured if m[0] <= self.threshold]
        for _, _, layer in chosen:
            layer.project(projection(layer.alignment))
        job.notes |= {"projected": float(len(chosen)), "matrices": float(len(measured))}


def projection(alignment: Tensor) -> Tensor:
    """C = V V^T / |V|_F, (out, out)."""
    c: Tensor = alignment @ alignment.T / torch.linalg.matrix_norm(alignment)
    return c


def cosine(c: Tensor, update: Tensor) -> float:
    """Cosine of C U and U as vectors."""
    return float(torch.cosine_similarity((c @ update).flatten(), update.flatten(), dim=0))


def found(job: Tuning) -> Iterator[Layer]:
    """The matrices that both alignment and the tune changed."""
    if job.base is None:
        raise TiterError("guard safelora: needs the model before its alignment: pass --base_model")
    base = {n: p.detach() for n, p in job.base.named_parameters()}
    adapted = list(_adapted(job, base))
    for layer in adapted or _full(job, base):
        if bool(layer.alignment.any()) and bool(layer.update.any()):
            yield layer


def _adapted(job: Tuning, base: dict[str, Tensor]) -> Iterator[Layer]:
    for a in adapters(job.session.model):
        weight = oriented(a.base, a.base.get_parameter("weight"))
        dtype = wide(weight.dtype)

        def put(c: Tensor, b: Tensor = a.b) -> None:
            b.copy_(c @ b.to(c.dtype))

        alignment = weight.to(dtype) - _theirs(base, f"{a.name}.weight", a.base, weight).to(dtype)
        yield Layer(a.scaling * (a.b.to(dtype) @ a.a.to(dtype)), alignment, put)


def _full(job: Tuning, base: dict[str, Tensor]) -> Iterator[Layer]:
    if job.before is None:
        raise TiterError("guard safelora: needs the weights before the fine-tune")
    before = dict(job.before)
    for m in matrices(job.session.model):
        dtype = wide(m.weight.dtype)
        old = m.of(before).to(dtype)
        update = m.weight.to(dtype) - old

        def put(c: Tensor, weight: Tensor = m.weight, old: Tensor = old, update: Tensor = update) -> None:
            weight.copy_(old + c @ update)

        yield Layer(update, old - _theirs(base, f"{m.name}.weight", m.module, m.weight).to(dtype), put)


def _theirs(base: dict[str, Tensor], name: str, module: torch.nn.Module, like: Tensor) -> Tensor:
    if name not in base or oriented(module, base[name]).shape != like.shape:
        raise TiterError(f"guard safelora: the base model has no {name} of the same shape: pass the right base")
    return oriented(module, base[name]).to(like.device)
