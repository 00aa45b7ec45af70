"""Every cross-entropy and log-probability of answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from titer.schema.errors import TiterError
from titer.schema.types import Batch
from titer.training.gradients import IGNORE, wide


def answer_ce(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the response tokens of a batch; a scalar with gradient, in float32."""
    kept = batch.labels[:, 1:] != -100
    if batch.position_ids is None:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    else:  # without a mask the model reads from the positions where a row begins
        output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    hidden_logits = output.logits[:, :-1]
    return nn.functional.cross_entropy(hidden_logits[kept].float(), batch.labels[:, 1:][kept])


def sft_rule(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Ordinary supervised fine-tuning: descend the response tokens' cross-entropy."""
    loss = answer_ce(model, batch)
    loss.backward()
    return {"loss": float(loss.detach())}


def answer_positions(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of every position that predicts a response token, and those tokens: three (N,) int64 vectors."""
    rows, columns = torch.nonzero(labels[:, 1:] != IGNORE, as_tuple=True)
    if len(rows) == 0:
        raise TiterError("batch: no response token to train on: check max_length and the labels")
    return rows, columns, labels[rows, columns + 1]


def response_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (N, V) at the positions that predict response tokens, and those tokens (N,).

    The head runs only on columns that hold a response somewhere in the batch.
    """
    rows, columns, targets = answer_positions(batch.labels)
    keep, where = torch.unique(columns, return_inverse=True)
    logits = forward(model, batch, keep)
    return logits[rows, where], targets


def forward(model: nn.Module, batch: Batch, keep: Tensor | int = 1) -> Tensor:
    """One forward pass; logits of the columns `keep` only (an int keeps that many at the end)."""
    output = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=keep, use_cache=False
    )
    logits = output.logits
    assert isinstance(logits, Tensor)
    return logits


def response_ce(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy (nats) over response tokens, computed in fp32 or wider."""
    logits, targets = response_logits(model, batch)
    return cross_entropy(logits.to(wide(logits.dtype)), targets)
