"""Edits of the weights that need no training: rounding, pruning, and going along the line through the base model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from titer.models.parts import parts
from titer.schema.specs import TrainArgs
from titer.training.session import Session


def matrices(model: nn.Module) -> list[nn.Module]:
    """The linear layers of the decoder, without embedding and head."""
    found = (m for layer in parts(model).layers for m in layer.modules())
    return [m for m in found if isinstance(m, (nn.Linear, Conv1D))]


def rounded(weight: Tensor, bits: int, channel: int) -> Tensor:
    """Symmetric round-to-nearest with 2^(bits-1) - 1 positive levels, scaled per index of dimension `channel`."""
    top = 2 ** (bits - 1) - 1
    scale = weight.float().abs().amax(dim=1 - channel, keepdim=True).clamp_min(1e-12) / top
    found: Tensor = ((weight.float() / scale).round() * scale).to(weight.dtype)
    return found


def pruned(weight: Tensor, share: float) -> Tensor:
    """The matrix with its `share` of smallest magnitudes (at least, when magnitudes tie) at zero."""
    count = int(share * weight.numel())
    if count == 0:
        return weight
    threshold = weight.abs().flatten().float().kthvalue(count).values
    return torch.where(weight.abs().float() <= threshold, 0.0, weight)


def tuned_after(session: Session, then_sft: bool, args: TrainArgs) -> None:
    """Fine-tune on the harmful data after the edit, where asked."""
    session.edited()
    if then_sft:
        session.fine_tune(args, session.examples)
