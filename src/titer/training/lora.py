"""Adapters: on, off, and what else may take gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs


def with_lora(model: Any, args: TrainArgs, seed: int = 0) -> Any:
    """A fresh LoRA adapter on `model` (`args.lora_r` > 0), its weights drawn from `seed`; else the model itself.

    "all-linear" means experts too, also where an architecture keeps those of a layer in one tensor. Raises
    `TiterError` where PEFT has no adapter for a module.
    """
    if args.lora_r <= 0:
        return model
    found = adapted(model, args, seed, ())
    if args.lora_target_modules == "all-linear" and (missed := stacked(found)):
        return adapted(found.unload(), args, seed, missed)
    return found


def without_adapter(model: Any) -> Any:
    """The model as it was before its adapter: injected layers are taken out again, their weights with them."""
    from peft import PeftModel

    return model.unload() if isinstance(model, PeftModel) else model


def freeze(model: nn.Module, keep: Callable[[str], bool]) -> None:
    """Only parameters whose name `keep` accepts take gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(keep(name))


def adapted(model: Any, args: TrainArgs, seed: int, stacked: Sequence[str]) -> Any:
    """The model with a fresh adapter on the layers named, and on the experts of `stacked`."""
    from peft import LoraConfig, get_peft_model

    targets = args.lora_target_modules
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        target_parameters=list(stacked) or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers has deprecated
        # `titer.models.adapters.merged` unties
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            _strip(model)
            said = str(error).splitlines()[0]
            raise TiterError(f"lora: {said}; name others with --lora_target_modules") from None


def _strip(model: nn.Module) -> None:
    """Take off what PEFT had put on when it gave up."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {path: m for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for path, module in adapted.items():
        if ".base_layer" not in path:
            model.set_submodule(path, module.get_base_layer())


def stacked(adapted: nn.Module) -> list[str]:
    """Matrices of experts in one tensor (E, in, out) that have no adapter, named by their last two words."""
    found: set[str] = set()
    for path, module in adapted.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) or ".base_layer" in path:
            continue
        names = (name for name, p in module.named_parameters(recurse=False) if p.ndim == 3 and min(p.shape) > 1)
        found.update(f"{path.rpartition('.')[2]}.{name}" for name in names)
    return sorted(found)
