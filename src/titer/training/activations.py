"""Hooks that are gone when the block ends: capture, shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from titer.models.shards import all_rows, own_rows


def first(output: Any) -> Tensor:
    """The hidden states of a module's output: the tensor itself, or the head of a tuple."""
    value = output[0] if isinstance(output, tuple) else output
    assert isinstance(value, Tensor)
    return value


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured(modules: Sequence[nn.Module], side: Literal["input", "output"] = "output") -> Iterator[list[Tensor]]:
    """Collect the hidden states (B, T, d) that enter or leave each module in the last forward pass, with their graph.

    The list has one entry per module, in their order, and is complete after a forward pass inside the block.
    """
    found: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep_output(i: int) -> Callable[..., None]:
        return lambda module, args, output: found.__setitem__(i, all_rows(first(output)))

    def keep_input(i: int) -> Callable[..., None]:
        return lambda module, args, kwargs: found.__setitem__(
            i, all_rows(args[0] if args else kwargs["hidden_states"])
        )

    if side == "output":
        handles = [m.register_forward_hook(keep_output(i)) for i, m in enumerate(modules)]
    else:
        handles = [m.register_forward_pre_hook(keep_input(i), with_kwargs=True) for i, m in enumerate(modules)]
    with hooked(handles):
        yield found


@contextmanager
def shifted_activations(modules: Sequence[nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Each module's output hidden states are `h + shift` inside the block; backward passes belong inside it too."""

    def add(shift: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = first(output)
            moved = hidden + own_rows(shift, hidden).to(hidden.dtype)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    with hooked([m.register_forward_hook(add(s)) for m, s in zip(modules, shifts, strict=True)]):
        yield
