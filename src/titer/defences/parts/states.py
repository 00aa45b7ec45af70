"""Hidden states and outputs of a model and of its frozen reference, side by side, at response tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad

from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.activations import captured
from titer.training.gradients import IGNORE, wide
from titer.training.losses import forward


def layer_at(depth: float, count: int) -> int:
    """Index of the decoder layer at a relative depth: layer 7 of 32 is 7/32, whatever the model's size."""
    return min(count - 1, int(depth * count))


def state_at(depth: float, count: int) -> int:
    """Index into `hidden_states` at a relative depth, at least 1: state 10 of 32 blocks is 10/32.

    State 0 is the embedding and state i what block i - 1 puts out: the numbering of Hugging Face's `hidden_states`.
    """
    return max(1, min(count, int(depth * count)))


def observed(model: nn.Module, look: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """The blocks + 1 hidden states (B, T, d) of the pass that `look` makes, and what it returns.

    They are what Hugging Face calls `hidden_states`: the embedding, every block's output, the last one normed.
    """
    found = parts(model)
    with captured(found.layers, "input") as entering, captured([found.final_norm]) as last:
        result = look()
    return [*entering, *last], result


def hidden_states(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The blocks + 1 hidden states of a batch, each (B, T, d)."""
    return observed(model, lambda: forward(model, batch))[0]


def counted(batch: Batch, everything: bool) -> Tensor:
    """The tokens a loss counts, (B, T) bool: all but padding, or the response alone."""
    return batch.attention_mask.bool() if everything else batch.labels != IGNORE


def at_tokens(states: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """States (B, T, d) at the tokens counted: (len(states), N, d) in fp32 or wider."""
    found = torch.stack([s[tokens] for s in states])
    return found.to(wide(found.dtype))


def response_states(model: nn.Module, batch: Batch, layers: Sequence[int]) -> Tensor:
    """Outputs of decoder layers at response tokens, (len(layers), N, d) in fp32 or wider."""
    found = parts(model).layers
    with captured([found[i] for i in layers]) as outputs:
        forward(model, batch)
    return at_response(outputs, batch)


def at_response(states: Sequence[Tensor], batch: Batch) -> Tensor:
    """Hidden states (B, T, d) cut to the response tokens and stacked: (len(states), N, d) in fp32 or wider."""
    return at_tokens(states, counted(batch, everything=False))


def reference_states(model: nn.Module, batch: Batch, layers: Sequence[int]) -> Tensor:
    """`response_states` without a graph."""
    with torch.no_grad():
        return response_states(model, batch, layers)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over rows of KL(teacher || student) from logits (N, V), in nats, in fp32 or wider."""
    p = log_softmax(teacher.to(wide(teacher.dtype)), -1)
    q = log_softmax(student.to(wide(student.dtype)), -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def kept_rows(pair: Pair) -> Batch:
    """The refusals and, where there is one, the benign batch."""
    return pair.harmless if pair.retain is None else join(pair.harmless, pair.retain)


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
