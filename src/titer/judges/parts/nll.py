"""Mean negative log-likelihood of completions under a model, for the coherence rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from titer.data.tokens import encode_after, render_prompt


@torch.inference_mode()
def mean_nll(
    model: Any, tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], tokens_from: int
) -> list[float | None]:
    """Nats per token of each completion after its prompt, one row at a time.

    None for fewer than `tokens_from` tokens, and when prompt and completion exceed the model's context.
    """
    limit = model.config.get_text_config().max_position_embeddings
    found: list[float | None] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        asked = render_prompt(tokenizer, prompt)
        before, said = encode_after(tokenizer, asked, completion if asked[-1].isspace() else f" {completion}")
        fits = tokens_from <= len(said) and len(before) + len(said) <= limit
        found.append(_nats(model, before, said) if fits and before else None)
    return found


def _nats(model: Any, before: list[int], said: list[int]) -> float:
    ids = torch.tensor([before + said], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(said) + 1).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(before) :]))
