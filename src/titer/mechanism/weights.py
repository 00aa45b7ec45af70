"""How far the weights of a model are from its reference's, matrix by matrix and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from titer.models.parts import parts
from titer.models.shards import whole

TOP = 0.1  # share of the singular directions that counts as the top
SPECTRUM = 8  # singular values that are kept


@dataclass(frozen=True)
class Drift:
    """One matrix or vector of a layer. What has no meaning is None: a vector's ranks, a cosine with zero.

    Attributes:
        layer: its decoder layer; None for embedding, final norm and head.
        component: its name inside the layer.
        relative: ||change|| / ||reference||, Frobenius; None where the reference is zero.
        cosine: of the two, taken as vectors.
        identical: no bit differs.
        stable_rank: ||change||_F^2 / ||change||_2^2.
        spectrum: the largest singular values of the change, over its Frobenius norm.
        top_share: share of the change's squared norm inside the top singular subspace of the reference, on the
            matrix's smaller side.
        attack_share: the same, inside the top singular subspace of the attacker's change.
        chance: what both shares are for a change in a random direction.
    """

    layer: int | None
    component: str
    relative: float | None
    cosine: float | None
    identical: bool
    stable_rank: float | None = None
    spectrum: tuple[float, ...] = ()
    top_share: float | None = None
    attack_share: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class LayerDrift:
    """All of a decoder layer's weights together."""

    layer: int
    relative: float
    identical: bool


@dataclass(frozen=True)
class Weights:
    """Every drift, the layers', and where along the depth they lie.

    Attributes:
        centre: the mean depth of the layers' drift, 0 the first and 1 the last; 0.5 is flat or symmetric.
        unevenness: standard deviation of the layers' drift over its mean; 0 is flat.
    """

    drifts: tuple[Drift, ...]
    layers: tuple[LayerDrift, ...]
    centre: float | None
    unevenness: float | None


def named(model: nn.Module) -> dict[tuple[int | None, str], Tensor]:
    """Every weight by its decoder layer and its name inside it; a tied head is the embedding."""
    found = parts(model)
    weights: dict[tuple[int | None, str], Tensor] = {}
    for i, layer in enumerate(found.layers):
        for name, p in layer.named_parameters():
            weights[i, name.removesuffix(".weight")] = p.detach()
    ends = {"embedding": found.embedding, "final norm": found.final_norm, "head": found.head}
    seen: set[int] = set()
    for end, module in ends.items():
        for name, p in module.named_parameters():
            if id(p) not in seen:
                weights[None, end if name == "weight" else f"{end}.{name}"] = p.detach()
            seen.add(id(p))
    return weights


@torch.no_grad()
def drift(model: nn.Module, reference: nn.Module, attacked: nn.Module | None = None) -> Weights:
    """The change of every weight from the reference; with the attacked model also where the attacker's change lies.

    One matrix at a time is taken to float64. The shapes must be alike (`states.check_alike`).
    """
    own, base = named(model), named(reference)
    after = named(attacked) if attacked is not None else {}
    drifts = tuple(_drift(key, own.get(key), base[key], after.get(key), own) for key in base)
    layers = tuple(_layer(i, own, base) for i in range(len(parts(reference).layers)))
    moved = [one.relative for one in layers]
    return Weights(drifts, layers, centre(moved), unevenness(moved))


def _drift(
    key: tuple[int | None, str],
    own: Tensor | None,
    base: Tensor,
    after: Tensor | None,
    weights: Mapping[Any, Tensor],
) -> Drift:
    layer, component = key
    own = own if own is not None else weights[None, "embedding"]  # a head that only the other model has untied
    w, w0 = _exact(own), _exact(base)
    change, size = w - w0, float(w0.norm())
    moved = float(change.norm())
    both = float(w.norm()) * size
    plain = Drift(
        layer,
        component,
        relative=moved / size if size else None,
        cosine=min(float((w * w0).sum()) / both, 1.0) if both else None,
        identical=bool(torch.equal(own, base)),
    )
    if w0.ndim != 2 or moved == 0:
        return plain
    values = singular_values(change)
    attack = _exact(after) - w if after is not None else None
    return Drift(
        layer,
        component,
        plain.relative,
        plain.cosine,
        plain.identical,
        stable_rank=float(values.square().sum() / values[0].square()),
        spectrum=tuple(float(v) / moved for v in values[:SPECTRUM]),
        top_share=share_inside(change, w0),
        attack_share=share_inside(change, attack) if attack is not None else None,
        chance=top_rank(w0) / min(w0.shape),
    )


def _exact(weight: Tensor) -> Tensor:
    """The whole weight in float64, where its device has that."""
    found = whole(weight)
    return found.cpu().double() if found.device.type == "mps" else found.double()


def _small_side(matrix: Tensor) -> Tensor:
    """The matrix with its smaller side in rows."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values, largest first, from the Gram matrix of the smaller side (a tall embedding fits)."""
    small = _small_side(matrix)
    squared: Tensor = torch.linalg.eigvalsh(small @ small.T)
    return squared.flip(0).clamp_min(0).sqrt()


def top_rank(matrix: Tensor) -> int:
    """How many singular directions count as the top."""
    return max(1, round(TOP * min(matrix.shape)))


def share_inside(change: Tensor, of: Tensor) -> float | None:
    """Share of ||change||_F^2 inside the top singular subspace of `of`; None where either is zero."""
    total = float(change.square().sum())
    if total == 0 or float(of.square().sum()) == 0:
        return None
    small = _small_side(of)
    top = torch.linalg.eigh(small @ small.T).eigenvectors[:, -top_rank(of) :]
    return float((top.T @ _small_side(change)).square().sum()) / total


def _layer(i: int, own: Mapping[Any, Tensor], base: Mapping[Any, Tensor]) -> LayerDrift:
    keys = [k for k in base if k[0] == i]
    moved = sum(float((_exact(own[k]) - _exact(base[k])).square().sum()) for k in keys)
    size = sum(float(_exact(base[k]).square().sum()) for k in keys)
    return LayerDrift(i, math.sqrt(moved / size), all(bool(torch.equal(own[k], base[k])) for k in keys))


def centre(values: Sequence[float]) -> float | None:
    """Mean depth of what lies on the layers; None where nothing does or there is one layer."""
    total = sum(values)
    if total == 0 or len(values) < 2:
        return None
    return sum(i * v for i, v in enumerate(values)) / total / (len(values) - 1)


def unevenness(values: Sequence[float]) -> float | None:
    """Standard deviation over mean; None where nothing moved."""
    average = sum(values) / len(values)
    if average == 0:
        return None
    return math.sqrt(sum((v - average) ** 2 for v in values) / len(values)) / average


@dataclass(frozen=True)
class Tasks:
    """Cosines of the task vectors of a defence and of the attack on what it made, over all weights.

    Attributes:
        defence_attack: near -1, the attack undoes the defence.
        defence_total: what is left of the defence after the attack.
        left: projection of the total change on the defence's, over its length; 1 is all of it, 0 none.
    """

    defence_attack: float | None
    defence_total: float | None
    left: float | None


@torch.no_grad()
def tasks(model: nn.Module, reference: nn.Module, attacked: nn.Module) -> Tasks:
    """Defence = model - reference, attack = attacked - model, total = attacked - reference."""
    own, base, after = named(model), named(reference), named(attacked)
    sums = {"dd": 0.0, "aa": 0.0, "tt": 0.0, "da": 0.0, "dt": 0.0}
    for key in base.keys() & own.keys() & after.keys():
        d = _exact(own[key]) - _exact(base[key])
        a = _exact(after[key]) - _exact(own[key])
        pairs = {"dd": (d, d), "aa": (a, a), "tt": (d + a, d + a), "da": (d, a), "dt": (d, d + a)}
        for name, (x, y) in pairs.items():
            sums[name] += float((x * y).sum())
    return Tasks(
        _cosine(sums["da"], sums["dd"], sums["aa"]),
        _cosine(sums["dt"], sums["dd"], sums["tt"]),
        sums["dt"] / sums["dd"] if sums["dd"] else None,
    )


def _cosine(product: float, one: float, other: float) -> float | None:
    return product / math.sqrt(one * other) if one and other else None
