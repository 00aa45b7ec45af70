"""What a run spends: tokens and FLOPs counted at the model's forward pass, seconds around the optimised work only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from titer.models.parts import unwrap
from titer.schema.types import Spend


@dataclass(frozen=True, slots=True)
class Cost:
    """What sets a model's FLOPs per token: weights met in a forward pass, those that train, attention width."""

    weights: int
    trainable: int
    attention: int

    def forward(self, tokens: float, context: float) -> float:
        """FLOPs of a forward pass over `tokens`, each attending to `context` positions (half of it on average)."""
        return 2.0 * self.weights * tokens + 2.0 * self.attention * tokens * context

    def backward(self, tokens: float, context: float) -> float:
        """FLOPs of the backward pass: gradients of all activations, and of the weights that train."""
        return self.forward(tokens, context) + 2.0 * self.trainable * tokens


def cost_of(model: nn.Module) -> Cost:
    """Count the matrix weights a token meets: linear layers and the head, not the embedding lookup."""
    from transformers.pytorch_utils import Conv1D  # here, because it takes most of a second

    seen = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, Conv1D))]
    config = unwrap(model).config.get_text_config()
    return Cost(
        weights=sum(map(size_of, seen)),
        trainable=sum(size_of(w) for w in seen if w.requires_grad),
        attention=config.num_hidden_layers * config.hidden_size,
    )


def size_of(weight: torch.Tensor) -> int:
    """How many weights a tensor holds: two in each byte of a 4-bit one."""
    return weight.numel() * (2 if weight.dtype == torch.uint8 else 1)


_running: ContextVar[Callable[[float], None] | None] = ContextVar("running", default=None)


def charge(flops: float) -> None:
    """Add FLOPs spent outside of a model's forward pass to the spend of the meter that is running, if any."""
    add = _running.get()
    if add is not None:
        add(flops)


@dataclass
class Meter:
    """Accumulates a `Spend` over the forward passes made inside `running` blocks.

    A forward pass under gradients is charged with its backward pass; recomputation under gradient checkpointing with
    one more forward pass. `passes` counts model forward calls, with and without gradients. The passes of the models
    in `also` (a frozen reference) count like those of the model that is running.
    """

    usd_per_exaflop: float = 0.0
    spend: Spend = Spend()
    passes: dict[str, int] = field(default_factory=lambda: {"grad": 0, "no_grad": 0})
    also: tuple[nn.Module, ...] = ()

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Count what `model` and the models in `also` compute inside the block, and the time it takes."""
        started, token = time.perf_counter(), _running.set(self._charge)
        with ExitStack() as hooks:
            for one in (model, *self.also):
                hooks.callback(self._watch(one).remove)
            try:
                yield
            finally:
                _running.reset(token)
                self.spend += Spend(device_seconds=time.perf_counter() - started)

    def _charge(self, flops: float) -> None:
        self.spend += Spend(flops=flops, usd=flops / 1e18 * self.usd_per_exaflop)

    def _watch(self, model: nn.Module) -> RemovableHandle:
        """Charge every forward pass of a model from here on, until the hook is removed."""
        cost = cost_of(model)
        checkpointed = any(getattr(m, "gradient_checkpointing", False) for m in unwrap(model).modules())

        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            ids: Any = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
            mask = kwargs.get("attention_mask")
            tokens = float(mask.sum()) if mask is not None else float(ids.shape[0] * ids.shape[1])
            grad = torch.is_grad_enabled()
            flops = cost.forward(tokens, ids.shape[1]) * (2 if grad and checkpointed else 1)
            if grad:
                flops += cost.backward(tokens, ids.shape[1])
            self.passes["grad" if grad else "no_grad"] += 1
            self.spend += Spend(tokens=int(tokens))
            self._charge(flops)

        return model.register_forward_hook(count, with_kwargs=True)
