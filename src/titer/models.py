"""Models: load by name, folder or hub id, find their parts, generate, snapshot and restore, save."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.bits import in_4_bits
from titer.errors import TiterError, unknown
from titer.sharding import from_all, is_distributed, place, whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
DECISIVE = (
    "config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
ORGANISM = ("base", "aligned", "ignorant", "random")


@dataclass(frozen=True)
class Parts:
    """The modules defences and mechanism studies hook: one entry per decoder layer, then the shared ends."""

    layers: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    final_norm: nn.Module
    head: nn.Module
    embedding: nn.Module


# architecture family -> where its layers, MLP, attention and final norm live, relative to the causal LM
FAMILIES: tuple[tuple[str, str, str, str, str], ...] = (
    ("Llama, Qwen2/3, Mistral, Gemma 2/3", "model.layers", "mlp", "self_attn", "model.norm"),
    ("Gemma 3 (with vision)", "model.language_model.layers", "mlp", "self_attn", "model.language_model.norm"),
    ("Phi", "model.layers", "mlp", "self_attn", "model.final_layernorm"),
    ("GPT-2", "transformer.h", "mlp", "attn", "transformer.ln_f"),
    ("GPT-NeoX, Pythia", "gpt_neox.layers", "mlp", "attention", "gpt_neox.final_layer_norm"),
)


def unwrap(model: nn.Module) -> Any:
    """The causal LM under a PEFT adapter, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def parts(model: nn.Module) -> Parts:
    """Decoder layers, MLPs, attentions, final norm, head and embedding of a causal LM, PEFT-wrapped or not.

    Raises `TiterError` naming the families looked for when the architecture is unknown.
    """
    lm = unwrap(model)
    for _, layers_at, mlp, attention, norm in FAMILIES:
        layers, final_norm = _find(lm, layers_at), _find(lm, norm)
        if layers is None or final_norm is None or not _all_have(layers, (mlp, attention)):
            continue
        return Parts(
            layers=tuple(layers),
            mlps=tuple(layer.get_submodule(mlp) for layer in layers),
            attentions=tuple(layer.get_submodule(attention) for layer in layers),
            final_norm=final_norm,
            head=lm.get_output_embeddings(),
            embedding=lm.get_input_embeddings(),
        )
    looked = "; ".join(f"{family}: {layers}.*.{mlp}, {norm}" for family, layers, mlp, _, norm in FAMILIES)
    raise TiterError(
        f"{type(lm).__name__}: unknown architecture, looked for {looked}; add a row to titer.models.FAMILIES"
    )


def _find(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _all_have(layers: Sequence[nn.Module], names: tuple[str, ...]) -> bool:
    return len(layers) > 0 and all(_find(layer, name) is not None for layer in layers for name in names)


# ---------------------------------------------------------------------------------------------------------- loading


def resolve(name: str) -> str:
    """A model argument as something `from_pretrained` takes: embedded names become folders, the rest is unchanged."""
    if name == "smollm2":
        from titer.smollm2 import convert

        return str(convert())
    if name.startswith("organism/"):
        from titer import organism

        kind = name.partition("/")[2]
        if kind not in ORGANISM:
            raise unknown("embedded model", name, [f"organism/{k}" for k in ORGANISM])
        return str(organism.checkpoint("base" if kind == "random" else kind))
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
    if constants.HF_HUB_OFFLINE or not _hub_answers():
        raise TiterError(
            f"model {where}: neither a folder nor in the local cache, and the hub cannot be reached: "
            "pass a local folder, organism/aligned or smollm2"
        )
    return False


def _hub_answers(timeout: float = 1.0) -> bool:
    """Whether a connection to the hub opens within `timeout` seconds (one try, no retries)."""
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True


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


# ---------------------------------------------------------------------------------------------------- save, restore


def save_model(model: Any, tokenizer: Any, output_dir: str | Path) -> None:
    """Write a plain Hugging Face folder (safetensors); an adapter is merged into its base first.

    Of a model on several processes the first one gathers the weights and writes.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    weights = (
        {name: whole(value).cpu() for name, value in model.state_dict().items()} if is_distributed(model) else None
    )
    if place(model)[0] == 0:
        model.save_pretrained(str(output_dir), state_dict=weights)
        tokenizer.save_pretrained(str(output_dir))


Snapshot = Mapping[str, torch.Tensor]


def snapshot(model: nn.Module) -> Snapshot:
    """A detached copy of every parameter and buffer that can change, to be given to `restore`."""
    return {k: v.detach().clone() for k, v in _changeable(model).items()}


def _changeable(model: nn.Module) -> Snapshot:
    """The state without weights in 4 bits and what belongs to them."""
    fixed = tuple(name for name, p in model.named_parameters() if not p.is_floating_point())
    return {k: v for k, v in model.state_dict().items() if not fixed or not k.startswith(fixed)}


def restore(model: nn.Module, saved: Snapshot) -> None:
    """Write a snapshot back, bit for bit, and clear gradients and the train/trainable state left behind."""
    with torch.no_grad():
        for key, value in _changeable(model).items():
            value.copy_(saved[key])
    model.zero_grad(set_to_none=True)
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    model.eval()


def fingerprint(where: str) -> str:
    """Content address of a model folder (weights and `DECISIVE` files), or the hub id.

    A folder is read anew only when one of its files has changed.
    """
    folder = Path(where)
    if not folder.is_dir():
        return f"hub:{where}"
    stamp = tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(folder.iterdir()))
    return _fingerprint(folder, stamp)


@lru_cache(maxsize=256)
def _fingerprint(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in DECISIVE:
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:16]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters of `model` take no gradient inside the block."""
    before = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(model.parameters(), before, strict=True):
            p.requires_grad_(flag)


# --------------------------------------------------------------------------------------------------------- generate


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int = 64
) -> list[str]:
    """Greedy continuations of already rendered prompts, in their order, special tokens stripped.

    Prompts are padded on the left and batched by length, so that similar lengths share a batch; a batch stops as soon
    as every row has ended, with one of the model's own end tokens or the tokenizer's. Processes that hold a model
    together share the rows of a batch, and all get all texts.
    """
    from transformers import GenerationConfig

    encoded = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    _check_lengths(model, encoded, max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    ends = model.generation_config.eos_token_id
    known = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(known) or None,
        bos_token_id=tokenizer.bos_token_id,
    )
    texts: dict[int, str] = {}
    training, (rank, size) = model.training, place(model)
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = batch[rank::size] or batch[:1]
        ids, mask = _left_pad([encoded[i] for i in rows], tokenizer.pad_token_id, model.device)
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=size > 1)
        decoded = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        texts |= {i: text.strip() for i, text in zip(rows, decoded, strict=True)}
    model.train(training)
    if size > 1:
        texts = {i: text for part in from_all(texts) for i, text in part.items()}
    return [texts[i] for i in range(len(encoded))]


def _left_pad(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(r) for r in rows)
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


def _check_lengths(model: Any, encoded: list[list[int]], max_new_tokens: int) -> None:
    limit = model.config.get_text_config().max_position_embeddings
    for i, ids in enumerate(encoded):
        if len(ids) + max_new_tokens > limit:
            raise TiterError(
                f"prompt {i + 1}: {len(ids)} tokens + {max_new_tokens} new ones exceed the context of {limit}: "
                "shorten the prompt or lower --max_new_tokens"
            )
