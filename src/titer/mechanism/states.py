"""Texts in batches and what a model's layers hold on them, reduced as they come: no state outlives its batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from titer.conditions.parts.curves import Array
from titer.data.batches import collate
from titer.data.tokens import Row
from titer.models.parts import parts
from titer.schema.errors import TiterError
from titer.schema.types import Batch
from titer.training.activations import captured
from titer.training.gradients import wide
from titer.training.losses import answer_positions, forward


@dataclass(frozen=True)
class Reader:
    """How texts are put to models: batches of `size` rows, padded with `pad`, on `device`."""

    pad: int
    size: int = 16
    device: str = "cpu"

    def batches(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """The rows in their order."""
        for start in range(0, len(rows), self.size):
            yield collate(rows[start : start + self.size], self.pad, self.device)


@dataclass(frozen=True)
class Pooled:
    """One vector a text and layer: (layers + 1, texts, d) each, the embedding first.

    Attributes:
        answer: the mean over the answer's tokens.
        prompt: the last token of the prompt.
    """

    answer: Array
    prompt: Array


def residuals(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The layers + 1 residual states (B, T, d) of a batch, the embedding first, none of them normed."""
    layers = parts(model).layers
    with torch.no_grad(), captured(layers[:1], "input") as entering, captured(layers) as leaving:
        forward(model, batch)
    return [*entering, *leaving]


def outputs(model: nn.Module, modules: Sequence[nn.Module], batch: Batch) -> list[Tensor]:
    """What the modules put out on a batch, (B, T, d) each."""
    with torch.no_grad(), captured(modules) as found:
        forward(model, batch)
    return list(found)


def predicting(batch: Batch) -> Tensor:
    """The positions that predict a token of the answer, (B, T) bool."""
    rows, columns, _ = answer_positions(batch.labels)
    where = torch.zeros_like(batch.labels, dtype=torch.bool)
    where[rows, columns] = True
    return where


def row_means(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """The mean of the values (..., N) of each of `count` rows, (..., count)."""
    totals = values.new_zeros((*values.shape[:-1], count)).index_add_(-1, rows, values)
    counts = values.new_zeros(count).index_add_(0, rows, values.new_ones(len(rows)))
    return totals / counts


def pooled(model: nn.Module, rows: Sequence[Row], reader: Reader) -> Pooled:
    """The vectors of every text; (layers + 1) x texts x d numbers are all that is kept."""
    answers, prompts = [], []
    for batch in reader.batches(rows):
        where = batch.labels != -100
        last = where.int().argmax(1) - 1
        each = torch.arange(len(last), device=last.device)
        shares = where / where.sum(1, keepdim=True)
        states = [s.to(wide(s.dtype)) for s in residuals(model, batch)]
        answers.append(_array(torch.stack([torch.einsum("bt,btd->bd", shares.to(s.dtype), s) for s in states])))
        prompts.append(_array(torch.stack([s[each, last] for s in states])))
    return Pooled(np.concatenate(answers, 1), np.concatenate(prompts, 1))


def _array(states: Tensor) -> Array:
    return np.asarray(states.cpu().double().numpy())


def check_alike(model: Any, reference: Any, name: str) -> None:
    """Refuse two models that do not have the same parts in the same shapes."""
    own, other = _shapes(model), _shapes(reference)
    if own == other:
        return
    wrong = next(k for k in {**own, **other} if own.get(k) != other.get(k))
    raise TiterError(
        f"model {name}: {wrong} is {_words(own.get(wrong))}, in the reference {_words(other.get(wrong))}: "
        "compare models of one architecture"
    )


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
