"""Optimiser states in 8 bits and frozen base models in 4, by bitsandbytes (extra `bnb`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.errors import TiterError
from titer.specs import AttackRun, ImmunizeRun, Run

ADAMW_8BIT = "adamw_8bit"


def bitsandbytes(asked_by: str) -> Any:
    """The library; `TiterError` naming the extra when it is not installed or does not work here."""
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, RuntimeError, OSError):
        raise TiterError(f"{asked_by}: needs bitsandbytes: pip install 'titer[bnb]', or leave it out") from None


def adamw_8bit(params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW whose two moments take a byte a weight (Dettmers et al., ICLR 2022, arXiv 2110.02861)."""
    library = bitsandbytes(f"optim {ADAMW_8BIT}")
    found: torch.optim.Optimizer = library.optim.AdamW8bit(params, lr=lr, weight_decay=weight_decay)
    return found


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


def check_bits(run: Run) -> None:
    """Refuse, in one line, what cannot be done in few bits or without the extra."""
    chosen = run.defence if isinstance(run, ImmunizeRun) else run.attack
    trained = run.train if isinstance(run, ImmunizeRun) else None
    if ADAMW_8BIT in (trained.optim if trained else "", chosen.options.get("optim")):
        bitsandbytes(f"optim {ADAMW_8BIT}")
    if not run.load_in_4bit:
        return
    if run.model.startswith("random:") or run.model == "organism/random":
        raise TiterError(f"load_in_4bit: {run.model} has no weights to quantise: leave it out")
    if isinstance(run, ImmunizeRun) and run.train.lora_r == 0:
        raise TiterError("load_in_4bit: a 4-bit model is frozen, only an adapter trains: pass --lora_r 16")
    if isinstance(run, AttackRun) and run.attack.name not in ("lora", "none") and not run.attack.options.get("lora_r"):
        raise TiterError(
            "load_in_4bit: a 4-bit model is frozen, only an adapter trains: use lora, or --attack_args.lora_r 16"
        )
    bitsandbytes("load_in_4bit")
