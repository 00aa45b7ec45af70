"""Weights: saved, fingerprinted, kept and put back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.models.adapters import merged
from titer.models.load import TOKENIZER_FILES, as_it_came, check_finite, copy, readable
from titer.models.shards import is_distributed, place, whole
from titer.schema.files import stamp

DECISIVE = (
    "config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


def save_model(model: Any, tokenizer: Any, output_dir: str | Path) -> None:
    """Write a plain Hugging Face folder (safetensors); an adapter is merged into its base first.

    The tokenizer's files and generation_config.json are those the model came with, byte for byte. Files have the
    permissions that umask allows. Raises `TiterError`, before anything is written, when a weight is not finite.
    Of a model on several processes the first one gathers the weights and writes.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model = merged(model)
    check_finite(model, str(output_dir))
    weights = (
        {name: whole(value).cpu() for name, value in model.state_dict().items()} if is_distributed(model) else None
    )
    if place(model)[0] == 0:
        model.save_pretrained(str(output_dir), state_dict=weights)
        copy(model.name_or_path, ("generation_config.json",), Path(output_dir))
        if not (as_it_came(tokenizer) and copy(tokenizer.name_or_path, TOKENIZER_FILES, Path(output_dir))):
            tokenizer.save_pretrained(str(output_dir))
        readable(output_dir)


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
    return _fingerprint(folder, stamp(folder))


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


def save_given(model: Any, tokenizer: Any, output_dir: Path) -> Path:
    """A model object saved under a name that its weights give it, so that two of them are two folders.

    A live adapter is merged into a copy: the object itself stays as it is.
    """
    import copy

    from peft import PeftModel

    own = merged(copy.deepcopy(model)) if isinstance(model, PeftModel) else model
    digest = hashlib.sha256()
    for name, weight in sorted(own.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    folder = output_dir / f"given-{digest.hexdigest()[:12]}"
    if not (folder / "config.json").is_file():
        save_model(own, tokenizer, folder)
    return folder
