"""What a defence is: the protocol, its two optional extensions, and the checks every defence shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from titer.schema.errors import TiterError
from titer.schema.types import Batch, Example, Pair
from titer.training.gradients import generator


class Defence(Protocol):
    """A rule that turns a pair of batches into a gradient; a frozen dataclass of hyper-parameters.

    All but `backward` are class attributes. `needs` is a subset of harmful, harmless, retain, reference, extra,
    held-out (and base, for `Transforms`); `broken_by` says what is known to break the method. Two more may be said:
    `alone`, why it cannot be added to others, and `shards = True`, that it gives on several processes what it gives on
    one (tests/defences/test_two_processes.py).
    """

    stage: ClassVar[str]
    broken_by: ClassVar[str]

    @property
    def name(self) -> str:
        """Kebab-case; what users type and tables show."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What must be in the pair."""
        ...

    @property
    def passes(self) -> str:
        """Forward and backward passes a step costs."""
        ...

    @property
    def source(self) -> str:
        """The paper."""
        ...

    @property
    def inner_batches(self) -> int:
        """How many batches `pair.extra` must hold."""
        ...

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Add this step's gradient to `.grad` of the trainable parameters; return every loss term, and `loss`.

        Depends on nothing but the model and the pair: what is drawn anew at every batch comes from `draws(pair)`, and
        schedules from `pair.step`, which counts optimiser steps.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """A defence that changes the data before training: `prepare` is called once on its examples."""

    def prepare(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """The examples to train on, in the order given."""
        ...


@runtime_checkable
class Transforms(Protocol):
    """A defence that edits the weights without data, once and before any training step."""

    def transform(self, model: nn.Module, base: nn.Module | None, seed: int) -> dict[str, float]:
        """Edit the parameters of `model` in place; `base` is the checkpoint before alignment, where one is needed."""
        ...


def need_retain(pair: Pair, name: str) -> Batch:
    """The retain batch, or a `TiterError` saying that the defence needs one."""
    if pair.retain is None:
        raise TiterError(f"{name}: needs benign data to retain: pass --retain_dataset")
    return pair.retain


def need_reference(pair: Pair, name: str) -> nn.Module:
    """The frozen starting model, or a `TiterError` saying that the defence needs it."""
    if pair.reference is None:
        raise TiterError(f"{name}: needs a frozen copy of the starting model in pair.reference")
    return pair.reference


def need_extra(pair: Pair, name: str, count: int) -> tuple[Batch, ...]:
    """`count` further harmful batches, or a `TiterError` saying how many are missing."""
    if len(pair.extra) < count:
        raise TiterError(f"{name}: needs {count} extra harmful batches a step, got {len(pair.extra)}")
    return pair.extra[:count]


def need_held_out(pair: Pair, name: str) -> Batch:
    """The harmful batch its simulated attacker never sees, or a `TiterError` saying that the defence needs one."""
    if pair.held_out is None:
        raise TiterError(f"{name}: needs a harmful batch that pair.extra never holds: pass it as pair.held_out")
    return pair.held_out


def draws(pair: Pair, device: torch.device | str = "cpu", stream: str = "") -> torch.Generator:
    """Draws of this batch alone: accumulated batches of one step differ, the first is as without accumulation."""
    return generator(pair.seed, pair.step, device, f"{stream}/{pair.micro}" if pair.micro else stream)


def capped(loss: Tensor, bound: float) -> Tensor:
    """`min(loss, bound)`: an ascent term gives no gradient once it is `bound` nats, so it cannot run away."""
    return loss.clamp(max=bound)
