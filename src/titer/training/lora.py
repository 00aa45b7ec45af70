"""Adapters: on, off, and what else may take gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from titer.schema.specs import TrainArgs


def with_lora(model: Any, args: TrainArgs, seed: int = 0) -> Any:
    """A fresh LoRA adapter on `model` (`args.lora_r` > 0), its weights drawn from `seed`; else the model itself."""
    if args.lora_r <= 0:
        return model
    from peft import LoraConfig, get_peft_model

    targets = args.lora_target_modules
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers has deprecated
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def without_adapter(model: Any) -> Any:
    """The model as it was before its adapter: injected layers are taken out again, their weights with them."""
    from peft import PeftModel

    return model.unload() if isinstance(model, PeftModel) else model


def freeze(model: nn.Module, keep: Callable[[str], bool]) -> None:
    """Only parameters whose name `keep` accepts take gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(keep(name))
