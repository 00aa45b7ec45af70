"""Refusal directions: found as differences of means, tried out and written out of the weights.

Shapes: hidden states (B, T, d); a direction is a unit vector (d,) in float32 on the model's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from titer.data.batches import collate
from titer.data.tokens import Row
from titer.models.parts import Parts, parts
from titer.schema.errors import TiterError
from titer.schema.types import Batch
from titer.training.activations import captured, hooked

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
    """Mean residual stream at the last prompt token, (layers + 1, d) in float32: before each layer, after the last."""
    layers = parts(model).layers
    total = torch.zeros(())
    for batch in tokens.batches([Row(r.ids[: r.response_at], r.response_at) for r in prompts]):
        last = batch.attention_mask.sum(1) - 1
        with captured(layers, "input") as before, captured(layers[-1:]) as after:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        rows = torch.arange(len(last), device=last.device)
        total = total.to(last.device) + torch.stack([h[rows, last].float().sum(0) for h in (*before, *after)])
    return total / len(prompts)


def gaps(model: nn.Module, harmful: Sequence[Row], benign: Sequence[Row], tokens: Tokens) -> Tensor:
    """Mean states of harmful prompts minus those of benign ones, (layers + 1, d); zero where rounding is all there is.

    Prompts that end in one token have one embedding there, and no gap before the first layer.
    """
    bad = mean_states(model, harmful, tokens)
    gap = bad - mean_states(model, benign, tokens)
    return torch.where(gap.norm(dim=-1, keepdim=True) > 1e-5 * bad.norm(dim=-1, keepdim=True), gap, 0.0)


def directions(model: nn.Module, harmful: Sequence[Row], benign: Sequence[Row], tokens: Tokens) -> Tensor:
    """The gaps as unit vectors (zero where there is none), (layers + 1, d)."""
    return nn.functional.normalize(gaps(model, harmful, benign, tokens), dim=-1)


@contextmanager
def added(model: nn.Module, layer: int, vector: Tensor) -> Iterator[None]:
    """Inside the block the input of one layer is moved by `vector` at every position."""

    def move(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] + vector.to(args[0].dtype), *args[1:]), kwargs
        states = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": states + vector.to(states.dtype)}

    with hooked([parts(model).layers[layer].register_forward_pre_hook(move, with_kwargs=True)]):
        yield


@contextmanager
def written_out(model: nn.Module, by_layer: Mapping[int, Tensor], strength: float) -> Iterator[None]:
    """Inside the block the weights are those after `write_out`; afterwards they are back, bit for bit."""
    p = parts(model)
    modules = [m for i in by_layer for m in writers(p, i)] + [p.embedding]
    kept = [(q, q.detach().clone()) for m in modules for q in m.parameters(recurse=False)]
    try:
        write_out(model, by_layer, strength)
        yield
    finally:
        with torch.no_grad():
            for q, before in kept:
                q.copy_(before)


@torch.no_grad()
def write_out(model: nn.Module, by_layer: Mapping[int, Tensor], strength: float) -> None:
    """Orthogonalise what writes to the residual stream: W <- W - s r r^T W for the two projections of each layer.

    The embedding loses the first given layer's direction when every layer is given one (2406.11717, section 2.4).
    """
    p = parts(model)
    for i, r in by_layer.items():
        for module in writers(p, i):
            _orthogonalise(module, r, strength)
    if len(by_layer) == len(p.layers):
        weight: Any = p.embedding.weight
        r = by_layer[0].to(weight.dtype)
        weight -= strength * torch.outer(weight @ r, r)


def writers(p: Parts, layer: int) -> tuple[nn.Module, nn.Module]:
    """The projections of one layer that write into the residual stream: attention's and the MLP's."""
    return writer(p.attentions[layer], ATTENTION_WRITERS), writer(p.mlps[layer], MLP_WRITERS)


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


def refusal_odds(model: nn.Module, prompts: Sequence[Row], refusing: Tensor, tokens: Tokens) -> float:
    """Mean log-odds that the token after a prompt is one of those that refusals start with (2406.11717, section 2.3).

    `refusing` (k,) holds their ids; odds in float64, since the probability may round to one.
    """
    found = next_tokens(model, prompts, tokens).double()
    rest = torch.ones(found.shape[1], dtype=torch.bool, device=found.device)
    rest[refusing] = False
    return float((found[:, ~rest].logsumexp(-1) - found[:, rest].logsumexp(-1)).mean())


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
