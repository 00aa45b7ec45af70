"""How likely a model finds the right answers, and how far it has moved from another there: for stability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from titer.data.collate import IGNORE, collate, encode
from titer.specs import Template
from titer.types import Batch, Example


@torch.inference_mode()
def likelihoods(
    model: Any, tokenizer: Any, examples: Sequence[Example], template: Template = Template(), batch_size: int = 16
) -> list[float]:
    """The geometric mean probability of an answer's tokens, per example: exp(-mean NLL), or 1 / perplexity.

    The answer is `harmful` where there is one, else `harmless`, with its end-of-turn token. Similar lengths share a
    batch. Raises `TiterError` for a prompt that fills the model's context.
    """

    def score(batch: Batch) -> Tensor:
        return _per_answer(-_answer_logs(model, batch).gather(1, _answers(batch)[:, None])[:, 0], batch).neg().exp()

    return _by_length(model, tokenizer, examples, template, batch_size, score)


@torch.inference_mode()
def divergences(
    model: Any,
    reference: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template = Template(),
    batch_size: int = 16,
) -> list[float | None]:
    """KL(reference || model) over the next token, in nats, averaged over an answer's tokens, per example.

    It is the extra nats per token that the model needs where text follows the reference. None everywhere when the two
    do not share a vocabulary. Rows, answers and errors as in `likelihoods`.
    """
    widths = {m.get_output_embeddings().weight.shape[0] for m in (model, reference)}
    if len(widths) > 1:
        return [None] * len(examples)

    def score(batch: Batch) -> Tensor:
        before, now = _answer_logs(reference, batch), _answer_logs(model, batch)
        return _per_answer((before.exp() * (before - now)).sum(1).clamp(min=0), batch)

    return [*_by_length(model, tokenizer, examples, template, batch_size, score)]


def _by_length(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template,
    batch_size: int,
    score: Callable[[Batch], Tensor],
) -> list[float]:
    """`score` of every example, in order; similar lengths share a batch; the model is in evaluation mode meanwhile."""
    limit = model.config.get_text_config().max_position_embeddings
    rows = [encode(tokenizer, e.prompt, e.harmful or e.harmless, template, limit) for e in examples]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found = [0.0] * len(rows)
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        batch = collate([rows[i] for i in group], tokenizer.pad_token_id or 0, model.device)
        for i, value in zip(group, score(batch).tolist(), strict=True):
            found[i] = value
    model.train(training)
    return found


def _answers(batch: Batch) -> Tensor:
    """Token ids of all answers of a batch (N,)."""
    labels = batch.labels[:, 1:]
    return labels[labels != IGNORE]


def _answer_logs(model: Any, batch: Batch) -> Tensor:
    """Log-probabilities (N, vocabulary) at the tokens of all answers."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    return torch.log_softmax(logits[batch.labels[:, 1:] != IGNORE].float(), -1)


def _per_answer(values: Tensor, batch: Batch) -> Tensor:
    """Mean (B,) of token values (N,) over each answer."""
    mask = batch.labels[:, 1:] != IGNORE
    spread = torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)
    return spread.sum(1) / mask.sum(1)
