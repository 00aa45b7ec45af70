"""Greedy completions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from titer.data.chat import open_thought
from titer.data.tokens import encode_prompt
from titer.models.greedy import continued, masks_padding
from titer.models.load import batches, check_known, context_length, end_tokens
from titer.models.parts import unwrap
from titer.models.shards import from_all, place
from titer.schema.errors import TiterError


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    end_ids: Collection[int] | None = None,
) -> list[str]:
    """Greedy continuations of already rendered prompts, in their order, special tokens stripped.

    Every token is the argmax of the logits; of the model's generation_config.json only the end tokens are taken, and
    not even these where `end_ids` says which tokens end a text (`end_tokens` otherwise).
    Prompts are padded on the left and batched by length, so that similar lengths share a batch; rows that have ended
    leave it. A prompt that ends inside a thought has the thought's tag put before its continuation. Processes that
    hold a model together share the rows of a batch, and all get all texts.
    """
    encoded = [encode_prompt(tokenizer, p) for p in prompts]
    _check_lengths(model, encoded, max_new_tokens)
    check_known(model, encoded)
    ends = frozenset(end_tokens(model, tokenizer) if end_ids is None else end_ids)
    texts: dict[int, str] = {}
    training, (rank, size) = model.training, place(model)
    model.eval()
    for batch in batches(encoded, batch_size, pads=masks_padding(unwrap(model))):
        rows = batch[rank::size] or batch[:1]
        asked = [encoded[i] for i in rows]
        said = continued(unwrap(model), asked, max_new_tokens=max_new_tokens, ends=ends, shared=size > 1)
        decoded = tokenizer.batch_decode(said, skip_special_tokens=True)
        texts |= {i: text.strip() for i, text in zip(rows, decoded, strict=True)}
    model.train(training)
    if size > 1:
        texts = {i: text for part in from_all(texts) for i, text in part.items()}
    return [open_thought(prompt) + texts[i] for i, prompt in enumerate(prompts)]


def _check_lengths(model: Any, encoded: list[list[int]], max_new_tokens: int) -> None:
    limit = context_length(model)
    for i, ids in enumerate(encoded):
        if not ids:
            raise TiterError(f"prompt {i + 1}: no token in it: give it a text")
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise TiterError(
                f"prompt {i + 1}: {len(ids)} tokens + {max_new_tokens} new ones exceed the context of {limit}: "
                "shorten the prompt or lower --max_new_tokens"
            )
