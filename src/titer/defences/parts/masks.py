"""Which tokens of a pair count: the difference mask of RepNoise, in its correct and in its original form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from titer.models.parts import unwrap
from titer.schema.types import Batch
from titer.training.gradients import IGNORE


def differing(own: Batch, other: Batch) -> Tensor:
    """Attended positions of `own` (B, T) whose token is not the one `other` has there; padding is no token."""
    width = own.input_ids.shape[1]
    there = _fit(other.input_ids.masked_fill(other.attention_mask == 0, -1), width, -1)
    return (own.attention_mask != 0) & (own.input_ids != there)


def masked_labels(own: Batch, other: Batch, use_mask: bool) -> Tensor:
    """Response labels of `own`, with coincidences with `other` left out when `use_mask`."""
    return own.labels.masked_fill(~differing(own, other), IGNORE) if use_mask else own.labels


def noise_mask(own: Batch, other: Batch, use_mask: bool) -> Tensor:
    """Positions (B, T) whose activations are noised: differing response tokens, or every attended token."""
    return differing(own, other) & (own.labels != IGNORE) if use_mask else own.attention_mask != 0


def legacy_mask(own: Tensor, other: Tensor, use_mask: bool) -> Tensor:
    """The original mask: positions whose raw ids differ, padding included; everything without `use_mask`."""
    return own != other if use_mask else torch.ones_like(own, dtype=torch.bool)


def same_width(model: nn.Module, a: Batch, b: Batch) -> tuple[Batch, Batch]:
    """Both batches right-padded to the longer one's length with the token id that padding has in them."""
    width = max(a.input_ids.shape[1], b.input_ids.shape[1])
    fill = _pad_id(model, a, b)
    return _widen(a, width, fill), _widen(b, width, fill)


def _widen(batch: Batch, width: int, fill: int) -> Batch:
    return Batch(
        _fit(batch.input_ids, width, fill), _fit(batch.attention_mask, width, 0), _fit(batch.labels, width, IGNORE)
    )


def _fit(x: Tensor, width: int, fill: int) -> Tensor:
    return pad(x, (0, width - x.shape[1]), value=fill)


def _pad_id(model: nn.Module, a: Batch, b: Batch) -> int:
    for batch in (a, b):
        padding = batch.input_ids[batch.attention_mask == 0]
        if len(padding):
            return int(padding[0])
    config = unwrap(model).config.get_text_config()
    known = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    return int(known if isinstance(known, int) else 0)
