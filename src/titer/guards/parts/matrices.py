"""The matrices a fine-tune changes: those of an adapter, or all of the decoder layers, as (out, in)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from titer.guards.base import Tuning, in_chunks
from titer.models.parts import parts
from titer.training.activations import hooked
from titer.training.gradients import IGNORE


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapted module: its name in the bare model, the module itself, and the update scaling x B A."""

    name: str
    base: nn.Module
    down: nn.Module
    up: nn.Module
    scaling: float

    @property
    def a(self) -> Tensor:
        """A, (r, in)."""
        return self.down.get_parameter("weight")

    @property
    def b(self) -> Tensor:
        """B, (out, r)."""
        return self.up.get_parameter("weight")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A module's weight seen as (out, in), whichever way its class stores it, with its name in the state dict."""

    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """A view to read and write in place."""
        return oriented(self.module, self.module.get_parameter("weight"))

    def of(self, weights: dict[str, Tensor]) -> Tensor:
        """The same matrix out of another model's weights."""
        return oriented(self.module, weights[f"{self.name}.weight"])


def oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """A module's weight as (out, in)."""
    return weight.T if isinstance(module, Conv1D) else weight


def adapters(model: nn.Module) -> list[Adapter]:
    """The adapted modules of a PEFT model; none for a bare one."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if not isinstance(model, PeftModel):
        return []
    inner = model.get_base_model()
    return [
        Adapter(name, m.get_base_layer(), m.lora_A["default"], m.lora_B["default"], float(m.scaling["default"]))
        for name, m in inner.named_modules()
        if isinstance(m, LoraLayer)
    ]


def matrices(model: nn.Module) -> list[Matrix]:
    """Every linear map inside the decoder layers of a bare model."""
    inside = {id(m) for layer in parts(model).layers for m in layer.modules()}
    return [
        Matrix(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and id(m) in inside
    ]


@contextmanager
def inputs_of(modules: Sequence[nn.Module], see: list[list[Tensor]], mask: list[Tensor]) -> Iterator[None]:
    """Append to `see[i]` the inputs (tokens, in) of module i at every forward pass.

    `mask` holds the (B, T) mask of the tokens that count in the pass under way.
    """

    def keep(i: int) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            see[i].append(args[0].detach()[mask[0].bool()])

        return hook

    with hooked([m.register_forward_pre_hook(keep(i)) for i, m in enumerate(modules)]):  # type: ignore[arg-type]
        yield


@torch.no_grad()
def seen_inputs(
    job: Tuning, modules: Sequence[nn.Module], side: str, responses: bool = False
) -> Iterable[list[Tensor]]:
    """What enters each module on the provider's rows, batch by batch: a list (tokens, in) per module.

    Padding is left out; with `responses` prompts are too.
    """
    session = job.session
    with session.meter.running(session.model):
        for batch in in_chunks(job.safety_rows(side), session.tokenizer.pad_token_id, session.device):
            see: list[list[Tensor]] = [[] for _ in modules]
            tokens = batch.labels != IGNORE if responses else batch.attention_mask
            with inputs_of(modules, see, [tokens]):
                session.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            yield [torch.cat(found) for found in see]
