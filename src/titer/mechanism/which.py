"""Which layers matter: single layers of the reference put back into the model, and where the harm comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from titer.conditions.parts.curves import Array
from titer.data.tokens import Row
from titer.mechanism.estimates import mean
from titer.mechanism.patching import answer_logp
from titer.mechanism.states import Reader
from titer.models.parts import parts
from titer.schema.types import Estimate


@contextmanager
def swapped(layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """The layer has the other's weights inside the block, and its own again, bit for bit, afterwards."""
    own = [p.detach() for p in layer.parameters()]
    saved = [p.clone() for p in own]
    with torch.no_grad():
        try:
            for mine, theirs in zip(own, other.parameters(), strict=True):
                mine.copy_(theirs)
            yield
        finally:
            for mine, before in zip(own, saved, strict=True):
                mine.copy_(before)


def likely(model: nn.Module, rows: Sequence[Row], reader: Reader) -> Array:
    """Mean log-probability of each text's answer, (texts,)."""
    with torch.no_grad():
        return np.concatenate([answer_logp(model, b).cpu().double().numpy() for b in reader.batches(rows)])


def put_back(model: nn.Module, reference: nn.Module, rows: Sequence[Row], reader: Reader) -> tuple[Estimate, ...]:
    """Per layer: how much likelier the answers are (nats a token) once that layer has the reference's weights."""
    plain = likely(model, rows, reader)
    found = []
    for own, other in zip(parts(model).layers, parts(reference).layers, strict=True):
        with swapped(own, other):
            found.append(mean(likely(model, rows, reader) - plain, unit="nats a token"))
    return tuple(found)
