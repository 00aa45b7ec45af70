"""The logit lens: how likely every layer already makes the answers, read through the final norm and the head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from titer.conditions.parts.curves import Array
from titer.data.tokens import Row
from titer.defences.parts.layer_loss import head_cross_entropy
from titer.mechanism.states import Reader, residuals, row_means
from titer.models.parts import parts
from titer.schema.types import Batch
from titer.training.losses import answer_positions


@torch.no_grad()
def lens(model: nn.Module, rows: Sequence[Row], reader: Reader) -> Array:
    """Mean log-probability (nats a token) of each text's answer at every layer, (layers + 1, texts).

    A state is normed by the final norm, then read by the head; only the answer's tokens count. The last row is what
    the model itself says. Source: nostalgebraist 2020; RepNoise (2405.14577), figures 3 and 7.
    """
    return np.concatenate([read(model, b).cpu().double().numpy() for b in reader.batches(rows)], 1)


def read(model: nn.Module, batch: Batch) -> Tensor:
    """The lens of one batch, (layers + 1, B)."""
    found = parts(model)
    rows, columns, targets = answer_positions(batch.labels)
    weights = torch.ones(len(targets), device=targets.device)
    losses = []
    for state in residuals(model, batch):
        normed = found.final_norm(state[rows, columns])
        losses.append(head_cross_entropy(model, found.head, normed, targets, weights)[1])
    return row_means(-torch.stack(losses), rows, len(batch.labels))
