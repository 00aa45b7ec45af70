"""The engine under defences and guards: gradients as dicts, shifted weights and activations, response-only losses.

A defence is a few of these pieces in a row: take a gradient (`gradient`), do algebra on it (`norm`, `dot`, `combine`),
look from a shifted point (`shifted`, `shifted_activations`), and add what comes out to `.grad` (`accumulate`).
Everything that changes the model is a context manager and is undone exactly when its block ends: weights come back
from a saved copy, never by subtracting the shift, because in bf16 w + s - s is not w.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from titer.models.shards import average, is_distributed, is_shard, own_part, whole
from titer.schema.errors import TiterError

IGNORE = -100
Gradient = dict[str, Tensor]
GradientView = Mapping[str, Tensor]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take a gradient, by name (a tied weight once)."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise TiterError(f"{type(model).__name__}: no trainable parameter: unfreeze some or add an adapter")
    return found


def gradient(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[Gradient, float]:
    """Gradient of `loss()` for every trainable parameter (zeros where unused) and its value; `.grad` is untouched."""
    params = trainable(model)
    if is_distributed(model):
        return _gradient_of_shards(params, loss)
    value = loss()
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, grads, strict=True)), value.item()


def _gradient_of_shards(params: Mapping[str, nn.Parameter], loss: Callable[[], Tensor]) -> tuple[Gradient, float]:
    """The same where only a backward pass brings shards their gradient."""
    with own_grad(params.values()):
        value = loss()
        value.backward()
        average(params.values())
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in params.items()}
    return grads, value.item()


@contextmanager
def own_grad(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """`.grad` starts empty inside the block and comes back as it was after it."""
    saved = [(p, p.grad) for p in params]
    for p, _ in saved:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in saved:
            p.grad = grad


@torch.no_grad()
def accumulate(model: nn.Module, grads: GradientView, weight: float = 1.0) -> None:
    """Add `weight * grads` to `.grad`."""
    for name, p in trainable(model).items():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        p.grad.add_(grads[name], alpha=weight)


def norm(grads: GradientView) -> float:
    """Euclidean norm over all entries, summed in fp32 or wider."""
    values = list(grads.values())
    parts = [whole(p) for p in torch._foreach_norm(values, 2, dtype=wide(values[0].dtype))]
    return float(torch.linalg.vector_norm(torch.stack([p.to(values[0].device) for p in parts])))


def dot(a: GradientView, b: GradientView) -> float:
    """Inner product over all entries, summed in fp32 or wider."""
    return float(sum(_inner(x, b[name]) for name, x in a.items()))


@torch.no_grad()
def combine(*terms: tuple[float, GradientView]) -> Gradient:
    """The weighted sum of gradients, as a new dict."""
    (first_weight, first), *rest = terms
    total = torch._foreach_mul(list(first.values()), first_weight)
    for weight, grads in rest:
        torch._foreach_add_(total, [grads[name] for name in first], alpha=weight)
    return dict(zip(first, total, strict=True))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: fp32, or `dtype` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def _inner(x: Tensor, y: Tensor) -> float:
    dtype = wide(x.dtype)
    if is_shard(x):
        return float(whole((x.to(dtype) * y.to(dtype)).sum()))
    return float(torch.dot(x.flatten().to(dtype), y.flatten().to(dtype)))


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Trainable parameters are put back, bit for bit, when the block ends, whatever happened inside."""
    params = [own_part(p.detach()) for p in trainable(model).values()]
    saved = [p.clone() for p in params]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
        weights_changed()


@contextmanager
def shifted(model: nn.Module, direction: GradientView, scale: float) -> Iterator[None]:
    """Inside the block the weights are `w + scale * direction`; afterwards exactly `w` (one extra copy of them).

    In bf16 a shift below about 1/256 of a weight is rounded away: keep fp32 weights for methods with small steps.
    """
    params = trainable(model)
    with restored(model):
        with torch.no_grad():
            torch._foreach_add_(list(params.values()), [direction[name] for name in params], alpha=scale)
        weights_changed()
        yield


def weights_changed() -> None:
    """To be called when weights change within one autocast block, which would go on using the casts it has cached."""
    torch.clear_autocast_cache()


def generator(seed: int, step: int, device: torch.device | str = "cpu", stream: str = "") -> torch.Generator:
    """A generator that depends on nothing but its arguments; `stream` separates the draws of one step."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "big"))
