"""Adapters merged into their base: the merged model gives the adapter's logits, or a line says why it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from titer.schema.errors import TiterError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# how far logits may move by merging, relative to the largest: rounding of the weights in their dtype
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}


def merged(model: Any) -> Any:
    """The causal LM under a PEFT model with the adapter in its weights, in place.

    An adapter on one of two tied matrices belongs to that one alone, so embedding and head are untied first
    (huggingface/peft#2018); the config then says so.
    """
    lm = model.get_base_model()
    embedding, head = _bare(lm.get_input_embeddings()), _bare(lm.get_output_embeddings())
    if _tied(embedding, head) and (_adapted(lm.get_input_embeddings()) or _adapted(lm.get_output_embeddings())):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    found = model.merge_and_unload()
    if not _tied(found.get_input_embeddings(), found.get_output_embeddings()):
        found.config.tie_word_embeddings = False
        found.config.get_text_config().tie_word_embeddings = False
    return found


def _bare(module: Any) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _adapted(module: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _tied(embedding: Any, head: Any) -> bool:
    return head is not None and getattr(embedding, "weight", None) is getattr(head, "weight", None)


def put_on(base: Any, where: str) -> Any:
    """The base with the adapter of a folder merged into it.

    Raises `TiterError` for adapters that are no change of weights, that do not fit the base, or that lack weights.
    """
    from peft import PeftConfig, PeftModel

    kind = PeftConfig.from_pretrained(where)
    if kind.is_prompt_learning:
        raise TiterError(
            f"model {where}: a {kind.peft_type.value} adapter adds to the prompt and cannot be merged into weights: "
            "pass a LoRA adapter or a whole model"
        )
    if not (Path(where) / WEIGHTS).is_file():
        raise TiterError(f"model {where}: no {WEIGHTS} in this folder: save the adapter as safetensors")
    _fit_vocabulary(base, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            model = PeftModel.from_pretrained(base, where).eval()
        except UserWarning as lacking:
            raise TiterError(f"model {where}: incomplete adapter: {str(lacking).splitlines()[0][:200]}") from None
        wanted = _logits(model)
        found = merged(model)
    gap, size = float((_logits(found) - wanted).abs().max()), float(wanted.abs().max())
    if not gap <= ROUNDING[found.dtype] * max(size, 1.0):
        raise TiterError(
            f"model {where}: merging this {kind.peft_type.value} adapter changes its logits by {gap:.2g}: "
            "pass a whole model"
        )
    return found


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Of two short rows of tokens from all over the vocabulary."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(18, device=model.device).reshape(2, 9) * 7919) % rows
    found: Tensor = model(input_ids=ids).logits.float()
    return found


def _fit_vocabulary(base: Any, where: str) -> None:
    """Give the base as many embedding rows as the adapter was trained with, where the adapter holds them."""
    ours = int(base.get_input_embeddings().weight.shape[0])
    shapes = _shapes(Path(where) / WEIGHTS)
    paths = {name: module for name, module in base.named_modules() if name}
    ends = {"embedding": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    names = {end: next((n for n, m in paths.items() if m is module), "") for end, module in ends.items()}
    theirs = {end: _rows(shapes, name) for end, name in names.items()}
    wanted = {rows for rows, _ in theirs.values() if rows}
    if not wanted - {ours}:
        return
    tied = _tied(ends["embedding"], ends["head"])
    held = all(whole for end, (_, whole) in theirs.items() if end == "embedding" or not tied)
    if len(wanted) > 1 or not held:
        raise TiterError(
            f"model {where}: the adapter is for a vocabulary of {max(wanted)} tokens, its base has {ours}, and the "
            "adapter does not hold the rows between: pass a whole model, or save it with its embedding layers"
        )
    with torch.random.fork_rng(devices=[]):
        base.resize_token_embeddings(wanted.pop(), mean_resizing=False)


def _shapes(file: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:
        return {key.removeprefix(PREFIX): tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118


def _rows(shapes: Mapping[str, list[int]], name: str) -> tuple[int, bool]:
    """Tokens that the adapter's part of an embedding or head is for (0: none); whether it holds all of them."""
    rows, whole = 0, False
    for key, shape in shapes.items():
        part = key.removeprefix(f"{name}.")
        if part == key:
            continue
        if part == "lora_embedding_A":
            rows = shape[1]
        elif part == "lora_B.weight":
            rows = shape[0]
        elif part in ("weight", "base_layer.weight"):
            rows, whole = shape[0], True
    return rows, whole
