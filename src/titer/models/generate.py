"""Greedy completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from titer.models.shards import from_all, place
from titer.schema.errors import TiterError


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
