"""Refusal directions: found as differences of means, tried out with hooks, written out of the weights.

Shapes: hidden states (B, T, d); a direction is a unit vector (d,) in float32 on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from titer.data.batches import collate
from titer.data.tokens import Row
from titer.models.parts import parts
from titer.schema.errors import TiterError
from titer.schema.types import Batch
from titer.training.activations import captured, first, hooked

# The projections that write into the residual stream, by the families of `titer.models.parts.FAMILIES`.
ATTENTION_WRITERS = ("o_proj", "c_proj", "dense")
MLP_WRITERS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2")
ROWS = 16


@dataclass(frozen=True, slots=True)
class Tokens:
    """What turns rows into batches: the pad id, and where the model is."""

    pad: int
    device: Any

    def batches(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """The rows in their order, `ROWS` at a time."""
        for at in range(0, len(rows), ROWS):
            yield collate(rows[at : at + ROWS], self.pad, self.device)


@torch.no_grad()
def mean_states(model: nn.Module, prompts: Sequence[Row], tokens: Tokens) -> Tensor:
    """Mean output of every decoder layer at the last prompt token, (layers, d) in float32."""
    layers = parts(model).layers
    total = torch.zeros(())
    for batch in tokens.batches([Row(r.ids[: r.response_at], r.response_at) for r in prompts]):
        last = batch.attention_mask.sum(1) - 1
        with captured(layers) as states:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        rows = torch.arange(len(last), device=last.device)
        total = total.to(last.device) + torch.stack([h[rows, last].float().sum(0) for h in states])
    return total / len(prompts)


def directions(model: nn.Module, harmful: Sequence[Row], benign: Sequence[Row], tokens: Tokens) -> Tensor:
    """Unit difference of the mean states of harmful and benign prompts at every layer, (layers, d)."""
    gap = mean_states(model, harmful, tokens) - mean_states(model, benign, tokens)
    return nn.functional.normalize(gap, dim=-1)


@contextmanager
def projected(model: nn.Module, by_layer: Mapping[int, Tensor], strength: float) -> Iterator[None]:
    """Inside the block each layer's output loses `strength` times its component along the layer's direction."""

    def without(direction: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            states = first(output)
            r = direction.to(states.dtype)
            moved = states - strength * (states @ r)[..., None] * r
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    layers = parts(model).layers
    with hooked([layers[i].register_forward_hook(without(r)) for i, r in by_layer.items()]):
        yield


@torch.no_grad()
def write_out(model: nn.Module, by_layer: Mapping[int, Tensor], strength: float) -> None:
    """Orthogonalise what writes to the residual stream: W <- W - s r r^T W for the two projections of each layer.

    The embedding loses the first given layer's direction when every layer is given one (2406.11717, section 2.4).
    """
    p = parts(model)
    for i, r in by_layer.items():
        for module in (writer(p.attentions[i], ATTENTION_WRITERS), writer(p.mlps[i], MLP_WRITERS)):
            _orthogonalise(module, r, strength)
    if len(by_layer) == len(p.layers):
        weight: Any = p.embedding.weight
        r = by_layer[0].to(weight.dtype)
        weight -= strength * torch.outer(weight @ r, r)


def writer(block: nn.Module, names: Sequence[str]) -> nn.Module:
    """The output projection of an attention or MLP; `TiterError` when it has none of the known names."""
    for name, child in block.named_children():
        if name in names:
            return child
    raise TiterError(
        f"{type(block).__name__}: no output projection among {', '.join(names)}: add its name to attacks/directions.py"
    )


def _orthogonalise(module: nn.Module, direction: Tensor, strength: float) -> None:
    weight: Any = module.weight
    r = direction.to(weight.dtype)
    if isinstance(module, Conv1D):  # (in, out), the transpose of a linear layer's
        weight -= strength * torch.outer(weight @ r, r)
    else:
        weight -= strength * torch.outer(r, r @ weight)
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias -= strength * (bias @ r) * r


# ------------------------------------------------------------------------------------------------------- selection


@torch.no_grad()
def compliance(model: nn.Module, harmful: Sequence[Row], refusals: Sequence[Row], tokens: Tokens) -> float:
    """Mean log-probability (nats per response token) of the harmful answers, minus that of the refusals if given."""
    score = _log_probability(model, harmful, tokens)
    return score - _log_probability(model, refusals, tokens) if refusals else score


def _log_probability(model: nn.Module, rows: Sequence[Row], tokens: Tokens) -> float:
    total, count = 0.0, 0
    for batch in tokens.batches(rows):
        kept = batch.labels[:, 1:] != -100
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1][kept]
        total -= float(nn.functional.cross_entropy(logits.float(), batch.labels[:, 1:][kept], reduction="sum"))
        count += int(kept.sum())
    return total / count


@torch.no_grad()
def next_tokens(model: nn.Module, prompts: Sequence[Row], tokens: Tokens) -> Tensor:
    """Log-probabilities of the token after each prompt, (N, V) in float32."""
    found = []
    for batch in tokens.batches([Row(r.ids[: r.response_at], r.response_at) for r in prompts]):
        last = batch.attention_mask.sum(1) - 1
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        found.append(logits[torch.arange(len(last), device=last.device), last].float().log_softmax(-1))
    return torch.cat(found)


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(before || after) in nats between rows of log-probabilities."""
    return float((before.exp() * (before - after)).sum(-1).mean())
