"""Hidden states and outputs of a model and of its frozen reference, side by side, at response tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad

from titer.models.parts import parts
from titer.schema.types import Batch
from titer.training.activations import captured
from titer.training.gradients import IGNORE, wide
from titer.training.losses import forward


def layer_at(depth: float, count: int) -> int:
    """Index of the decoder layer at a relative depth: layer 7 of 32 is 7/32, whatever the model's size."""
    return min(count - 1, int(depth * count))


def response_states(model: nn.Module, batch: Batch, layers: Sequence[int]) -> Tensor:
    """Outputs of decoder layers at response tokens, (len(layers), N, d) in fp32 or wider."""
    found = parts(model).layers
    with captured([found[i] for i in layers]) as outputs:
        forward(model, batch)
    return at_response(outputs, batch)


def at_response(states: Sequence[Tensor], batch: Batch) -> Tensor:
    """Hidden states (B, T, d) cut to the response tokens and stacked: (len(states), N, d) in fp32 or wider."""
    rows, columns = torch.nonzero(batch.labels != IGNORE, as_tuple=True)
    found = torch.stack([s[rows, columns] for s in states])
    return found.to(wide(found.dtype))


def reference_states(model: nn.Module, batch: Batch, layers: Sequence[int]) -> Tensor:
    """`response_states` without a graph."""
    with torch.no_grad():
        return response_states(model, batch, layers)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over rows of KL(teacher || student) from logits (N, V), in nats, in fp32 or wider."""
    p = log_softmax(teacher.to(wide(teacher.dtype)), -1)
    q = log_softmax(student.to(wide(student.dtype)), -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def join(*batches: Batch) -> Batch:
    """The rows of all batches in one, right-padded to the widest."""
    width = max(b.input_ids.shape[1] for b in batches)

    def stack(tensors: Sequence[Tensor], fill: int) -> Tensor:
        return torch.cat([pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])

    return Batch(
        stack([b.input_ids for b in batches], 0),
        stack([b.attention_mask for b in batches], 0),
        stack([b.labels for b in batches], IGNORE),
    )
