"""Models by name, folder, adapter or hub id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.data.hub import hub_answers
from titer.models.embedded import ORGANISM, checkpoint
from titer.models.quantize import in_4_bits
from titer.schema.errors import TiterError, unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve(name: str) -> str:
    """A model argument as something `from_pretrained` takes: embedded names become folders, the rest is unchanged."""
    if name == "smollm2":
        from titer.models.embedded import convert

        return str(convert())
    if name.startswith("organism/"):
        kind = name.partition("/")[2]
        if kind not in ORGANISM:
            raise unknown("embedded model", name, [f"organism/{k}" for k in ORGANISM])
        return str(checkpoint("base" if kind == "random" else kind))
    return name


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    seed: int = 0,
    load_in_4bit: bool = False,
) -> tuple[Any, Any]:
    """Model and tokenizer by embedded name, local folder, PEFT adapter folder or hub id.

    `organism/random`, or `random:NAME` for any other model, is the same architecture with fresh weights drawn from
    `seed`. An adapter folder without a tokenizer has that of its base. `load_in_4bit` quantises the linear layers but
    the head; they take no gradient (extra `bnb`). Raises `TiterError` for a missing folder, an
    unreachable hub, damaged or incomplete files and weights that hold NaN.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_loading()
    _check_device(device)
    fresh = name == "organism/random" or name.startswith("random:")
    where = resolve(name.removeprefix("random:"))
    local = check_available(where)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    torch_dtype = _dtype(dtype)
    tokenizer_at = where
    if load_in_4bit:
        model = _from_pretrained(where, torch_dtype, options | in_4_bits(where, torch_dtype, device))
    elif fresh:
        with _loading(f"model {where}"):
            config = AutoConfig.from_pretrained(where, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype)
    elif (Path(where) / "adapter_config.json").is_file():
        model, base = _load_adapter(where, torch_dtype, options)
        tokenizer_at = where if (Path(where) / "tokenizer_config.json").is_file() else base
    else:
        model = _from_pretrained(where, torch_dtype, options)
    _check_finite(model, name)
    placed = model if load_in_4bit else model.to(device)
    return placed.eval(), load_tokenizer(tokenizer_at, trust_remote_code=trust_remote_code)


def quiet_loading() -> None:
    """No progress bars and notes from transformers while it reads files; errors still come as errors."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_tokenizer(where: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a resolved model, padding on the right, with a pad token (its eos when it has none)."""
    from transformers import AutoTokenizer

    with _loading(f"model {where}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            where, trust_remote_code=trust_remote_code, local_files_only=Path(where).is_dir()
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _from_pretrained(where: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    with _loading(f"model {where}"):
        found: Any = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    model, info = found
    if lost := sorted(info["missing_keys"]):  # transformers would fill them with noise
        raise TiterError(f"model {where}: incomplete, its weights lack {lost[0]}: download or build it again")
    return model


def _load_adapter(where: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, str]:
    """The base with the adapter merged into it, and where the base is."""
    from peft import PeftConfig, PeftModel

    with _loading(f"model {where}"):
        base = resolve(str(PeftConfig.from_pretrained(where).base_model_name_or_path))
    base_local = check_available(base)
    model = _from_pretrained(base, dtype, {**options, "local_files_only": base_local})
    with _loading(f"model {where}"):
        return PeftModel.from_pretrained(model, where).merge_and_unload(), base


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Whatever the libraries raise on damaged or missing files becomes one line about `what`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TiterError(f"{what}: cannot be loaded: {first}") from None
    except SafetensorError as error:
        raise TiterError(f"{what}: damaged weights ({error}): download or build it again") from None


def check_available(where: str) -> bool:
    """True for a local model folder, False for a hub id that may be asked for; `TiterError` for everything else."""
    if Path(where).is_dir():
        if not any((Path(where) / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise TiterError(
                f"model {where}: no config.json or adapter_config.json in this folder: pass a model folder"
            )
        return True
    if where.count("/") > 1 or where.startswith((".", "~", os.sep)):
        raise TiterError(f"model {where}: no such folder: check the path")
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(where, "config.json")
    except ValueError:  # not a name the hub could have
        raise TiterError(f"model {where}: no such folder: check the path") from None
    if isinstance(cached, str):
        return constants.HF_HUB_OFFLINE
    if constants.HF_HUB_OFFLINE or not hub_answers():
        raise TiterError(
            f"model {where}: neither a folder nor in the local cache, and the hub cannot be reached: "
            "pass a local folder, organism/aligned or smollm2"
        )
    return False


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TiterError(f"device {name}: cannot be used: {str(error).splitlines()[0]}; pass cpu") from None


def _check_finite(model: nn.Module, name: str) -> None:
    for key, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise TiterError(f"model {name}: weights hold NaN or infinity in {key}: use a sound checkpoint")
