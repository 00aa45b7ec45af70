"""Weights in 4 bits."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from titer.schema.errors import TiterError


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
