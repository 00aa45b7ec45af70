"""Weights in 4 bits."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.schema.errors import TiterError

TRAINED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True)
class Trains:
    """How much of a model a fine-tune of all its weights reaches: `share` of them, and the names of the others."""

    share: float
    fixed: tuple[str, ...]


def trains(model: nn.Module) -> Trains:
    """Which weights take a gradient: those in a floating type of 16 bits or more that are not frozen.

    Weights in fewer bits do not, whether they are parameters or, as in GPTQ or AWQ, packed into integer buffers; a
    model of them resists every attack for a reason that a loader with another dtype takes away.
    """
    fixed: dict[str, int] = {}
    taking = 0
    for name, p in model.named_parameters():
        if p.requires_grad and p.dtype in TRAINED:
            taking += p.numel()
        else:
            fixed[name] = p.numel()
    kept = model.state_dict()
    packed = {n: b.numel() for n, b in model.named_buffers() if n in kept and b.ndim > 1 and b.dtype not in TRAINED}
    fixed |= packed
    whole = taking + sum(fixed.values())
    return Trains(taking / whole if whole else 0.0, tuple(fixed))


def bitsandbytes(asked_by: str) -> Any:
    """The library; `TiterError` naming the extra when it is not installed or does not work here."""
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, RuntimeError, OSError):
        raise TiterError(f"{asked_by}: needs bitsandbytes: pip install 'titer[bnb]', or leave it out") from None


def in_4_bits(where: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What `from_pretrained` takes to load a model in NF4 with doubly quantised scales (QLoRA, arXiv 2305.14314)."""
    bitsandbytes("load_in_4bit")
    from transformers import BitsAndBytesConfig

    if (Path(where) / "adapter_config.json").is_file():
        raise TiterError(f"load_in_4bit: {where} is an adapter: pass a model folder with the adapter merged in")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}
