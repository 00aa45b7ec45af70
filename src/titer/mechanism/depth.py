"""The Unlearning Depth Score: how much of the knowledge is gone from the states, not from the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from titer.conditions.parts.curves import Array
from titer.data.tokens import Row
from titer.mechanism.estimates import mean
from titer.mechanism.patching import patched
from titer.mechanism.states import Reader
from titer.models.parts import parts
from titer.schema.types import Estimate

THRESHOLD = 0.05  # nats a token that the ignorant model must lack at a layer for it to hold the knowledge


@dataclass(frozen=True)
class Depth:
    """What is lost when the full model goes on from another's states.

    Attributes:
        drop: per layer, log-probability of the answers lost (nats a token), with the model's states.
        ignorant: the same with the states of the model that never knew.
        score: 1 as ignorant, 0 intact; None without an ignorant model.
        layers_known: per layer, the share of texts whose knowledge the ignorant model lacks there.
    """

    drop: tuple[Estimate, ...]
    ignorant: tuple[Estimate, ...] = ()
    score: Estimate | None = None
    layers_known: tuple[float, ...] = ()


def drops(full: nn.Module, source: nn.Module, rows: Sequence[Row], reader: Reader) -> Array:
    """D_l = log p_full - log p_patched of every text at every layer, (layers, texts), nats a token of the answer."""
    modules = parts(full).layers, parts(source).layers
    found = []
    for batch in reader.batches(rows):
        plain, moved = patched(full, source, modules, batch)
        found.append((plain - moved).cpu().double().numpy())
    return np.concatenate(found, 1)


def scores(own: Array, ignorant: Array, threshold: float = THRESHOLD) -> Array:
    """The score of every text from two (layers, texts) of drops; NaN where the ignorant model lacks nothing.

    UDS = sum over l in F of D_ignorant clip(D_own / D_ignorant, 0, 1) / sum over l in F of D_ignorant, where F are the
    layers with D_ignorant > threshold. Source: 2605.24614, section 3.3 (the authors' spans are entities, here the
    whole answer).
    """
    held = ignorant > threshold
    weight = np.where(held, ignorant, 0.0)
    gone = np.clip(np.divide(own, ignorant, out=np.zeros_like(own), where=held), 0.0, 1.0)
    total = weight.sum(0)
    share: Array = np.divide((weight * gone).sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)
    return share


def depth(own: Array, ignorant: Array | None) -> Depth:
    """Drops with their intervals over texts, and the score when there is an ignorant model."""
    drop = tuple(mean(layer, unit="nats a token") for layer in own)
    if ignorant is None:
        return Depth(drop)
    each = scores(own, ignorant)
    return Depth(
        drop,
        tuple(mean(layer, unit="nats a token") for layer in ignorant),
        mean(each[~np.isnan(each)], unit="UDS", share=True),
        tuple(float(layer.mean()) for layer in ignorant > THRESHOLD),
    )
