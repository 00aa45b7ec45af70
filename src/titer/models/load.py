"""Models by name, folder, adapter or hub id."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.data.chat import turn_end
from titer.data.hub import hub_answers
from titer.models.adapters import put_on
from titer.models.embedded import ORGANISM, checkpoint
from titer.models.parts import unwrap
from titer.models.quantize import in_4_bits
from titer.models.shards import own_part
from titer.schema.errors import TiterError, unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def bare(name: str) -> str:
    """A model's name without the prefix that asks for fresh weights."""
    return name.removeprefix("random:")


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
    unreachable hub, damaged or incomplete files, weights that hold NaN, and a vocabulary that the embedding cannot
    hold. Of generation_config.json only the special tokens stay in force: who decodes decides how.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_loading()
    _check_device(device)
    fresh = name == "organism/random" or name.startswith("random:")
    where = resolve(bare(name))
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
    check_finite(model, name)
    placed = model if load_in_4bit else model.to(device)
    tokenizer = load_tokenizer(tokenizer_at, trust_remote_code=trust_remote_code)
    pad_inside(tokenizer, embedding_rows(model), name)
    _decode_plainly(model)
    return placed.eval(), tokenizer


def load_beside(name: str, model: nn.Module) -> nn.Module:
    """Another model, in the dtype and on the device of this one."""
    weight = next(model.parameters())
    found: nn.Module = load_model(name, dtype=str(weight.dtype).partition(".")[2], device=str(weight.device))[0]
    return found


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


def pad_inside(tokenizer: Any, rows: int | None, name: str) -> None:
    """Pad with the end token where the pad token has no row in an embedding of `rows`: padding is under the mask.

    Raises `TiterError` when a token that every text needs has no row.
    """
    if rows is None:
        return
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    template = str(tokenizer.chat_template or "")
    needed = {t: i for t, i in tokenizer.get_added_vocab().items() if t in template}
    needed |= {str(tokenizer.eos_token): tokenizer.eos_token_id or 0}
    for token, number in needed.items():
        if number >= rows:
            raise TiterError(
                f"model {name}: its token {token!r} is number {number} and its embedding has {rows} rows: "
                "resize the model to its tokenizer"
            )


def _decode_plainly(model: Any) -> None:
    """Forget what the folder says about decoding, apart from special tokens; `save_model` copies its file."""
    from transformers import GenerationConfig

    said = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=said.bos_token_id, eos_token_id=said.eos_token_id, pad_token_id=said.pad_token_id
    )


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
    from peft import PeftConfig

    with _loading(f"model {where}"):
        base = resolve(str(PeftConfig.from_pretrained(where).base_model_name_or_path))
    base_local = check_available(base)
    model = _from_pretrained(base, dtype, {**options, "local_files_only": base_local})
    with _loading(f"model {where}"):
        return put_on(model, where), base


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Whatever the libraries raise on damaged or missing files becomes one line about `what`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise TiterError(f"{what}: cannot be loaded: {_first_line(error)}") from None
    except SafetensorError as error:
        raise TiterError(f"{what}: damaged weights ({error}): download or build it again") from None


def _first_line(error: BaseException) -> str:
    """What an error says, with the line that a colon announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


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


def check_finite(model: nn.Module, name: str) -> None:
    """Raise `TiterError` when a weight is NaN or infinite."""
    for key, value in model.named_parameters():
        if not bool(torch.isfinite(own_part(value.detach())).all()):
            raise TiterError(f"model {name}: weights hold NaN or infinity in {key}: use a sound checkpoint")


# what may lie beside a model and belongs to its tokenizer
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


def readable(folder: str | Path) -> None:
    """Give weights in a folder the permissions of its other files: safetensors writes them for their owner only."""
    for weights in Path(folder).glob("*.safetensors"):
        beside = next((f for f in Path(folder).glob("*config.json") if f.is_file()), None)
        if beside is not None:
            weights.chmod(beside.stat().st_mode & 0o777)


def copy(source: str, names: Sequence[str], to: Path) -> bool:
    """Copy those of the files that `source`, a folder or a hub id in the cache, has; whether there was one."""
    found = [path for name in names if (path := _file_of(source, name)) is not None]
    for path in found:
        if path.resolve() != (to / path.name).resolve():
            shutil.copyfile(path, to / path.name)
    return bool(found)


def _file_of(source: str, name: str) -> Path | None:
    if not source:
        return None
    if Path(source).is_dir():
        return path if (path := Path(source) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, name)
    except ValueError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def as_it_came(tokenizer: Any) -> bool:
    """Whether a tokenizer says what its files say: nobody has added tokens or another template since."""
    if _file_of(tokenizer.name_or_path, "tokenizer_config.json") is None:
        return False
    try:
        fresh = load_tokenizer(tokenizer.name_or_path)
    except TiterError:
        return False
    same_words: bool = fresh.get_vocab() == tokenizer.get_vocab()
    return same_words and fresh.chat_template == tokenizer.chat_template


def batches(encoded: list[list[int]], size: int, *, pads: bool) -> Iterator[list[int]]:
    """Row numbers by length; without `pads` rows of one batch have one length."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    groups = [order] if pads else [list(same) for _, same in groupby(order, key=lambda i: len(encoded[i]))]
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a text: those that the model's folder names, and the tokenizer's own."""
    named = model.generation_config.eos_token_id
    listed = named if isinstance(named, (list, tuple)) else [named]
    known = {*listed, tokenizer.eos_token_id, turn_end(tokenizer)}
    return sorted(i for i in known if isinstance(i, int))


def context_length(model: Any) -> int | None:
    """How many tokens a model takes at once; None where its architecture sets no limit (ALiBi, recurrent)."""
    config = unwrap(model).config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def check_known(model: Any, encoded: list[list[int]]) -> None:
    """Refuse prompts with tokens that the embedding has no row for."""
    rows = embedding_rows(model)
    for i, ids in enumerate(encoded):
        if rows is not None and max(ids) >= rows:
            raise TiterError(
                f"prompt {i + 1}: its token {max(ids)} is outside of the embedding of {rows} rows: "
                "resize the model to its tokenizer"
            )


def embedding_rows(model: Any) -> int | None:
    """How many tokens a model has an embedding for; None for a model without a plain embedding."""
    weight = getattr(unwrap(model).get_input_embeddings(), "weight", None)
    return None if weight is None else int(weight.shape[0])
