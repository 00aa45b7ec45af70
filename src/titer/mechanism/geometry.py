"""The shape of the states: principal components, how far classes are apart, and how alike two models' states are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from titer.conditions.parts.curves import Array
from titer.mechanism.estimates import jackknife
from titer.schema.types import Estimate


@dataclass(frozen=True)
class Geometry:
    """Per layer, the embedding first.

    Attributes:
        separation: distance of the classes' means over the root of the mean squared distance of texts to their own.
        cka: linear CKA of the model's states and the reference's on the answers; 1 is the same up to rotation.
        refusal: cosine of the two models' refusal directions (mean last prompt token, restricted less open).
        points: the last layer's answers on its first two principal components, (text, component).
        explained: the share of the variance on each of the two.
    """

    separation: tuple[Estimate, ...]
    cka: tuple[Estimate, ...]
    refusal: tuple[Estimate, ...]
    points: tuple[tuple[float, float], ...]
    explained: tuple[float, float]


def separation(states: Array, labels: Array) -> float:
    """|| mean_1 - mean_0 || / sqrt(mean || x - own mean ||^2); 0 for states that are all alike."""
    one, other = states[labels == 1], states[labels == 0]
    gap = float(np.linalg.norm(one.mean(0) - other.mean(0)))
    around = np.concatenate([one - one.mean(0), other - other.mean(0)])
    spread = float(np.sqrt((around**2).sum(1).mean()))
    return gap / spread if spread > 0 else 0.0


def grams(states: Array) -> Array:
    """Inner products of texts, (texts, texts)."""
    return np.asarray(states @ states.T)


def cka(one: Array, other: Array) -> float:
    """Linear CKA from two Gram matrices of the same texts: <K, L> / (||K|| ||L||), both centred.

    Source: Kornblith et al. 2019 (1905.00414), equation 4. NaN where the texts are all alike in a model.
    """
    k, m = _centred(one), _centred(other)
    size = float(np.linalg.norm(k) * np.linalg.norm(m))
    return float((k * m).sum()) / size if size > 0 else float("nan")


def _centred(gram: Array) -> Array:
    return np.asarray(gram - gram.mean(0) - gram.mean(1, keepdims=True) + gram.mean())


def direction(states: Array, labels: Array) -> Array:
    """The difference of the classes' means, (d,)."""
    return np.asarray(states[labels == 1].mean(0) - states[labels == 0].mean(0))


def cosine(one: Array, other: Array) -> float:
    """NaN where either is zero."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else float("nan")


def components(states: Array) -> tuple[Array, tuple[float, float]]:
    """The states on their first two principal components, (texts, 2), and the shares of variance."""
    from sklearn.decomposition import PCA

    fitted = PCA(2, svd_solver="full").fit(states)
    shares = fitted.explained_variance_ratio_
    return fitted.transform(states), (float(shares[0]), float(shares[1]))


def cka_of(one: Array, other: Array) -> Estimate:
    """CKA of two models' states (texts, d) on the same texts, with its interval."""
    k, m = grams(one), grams(other)
    return jackknife(lambda i: cka(k[np.ix_(i, i)], m[np.ix_(i, i)]), len(k), unit="CKA")


def separation_of(states: Array, labels: Array) -> Estimate:
    """Separation with its interval."""
    return jackknife(lambda i: separation(states[i], labels[i]), len(labels), unit="separation")


def refusal_of(one: Array, other: Array, labels: Array) -> Estimate:
    """Cosine of the two refusal directions with its interval."""

    def angle(i: Array) -> float:
        return cosine(direction(one[i], labels[i]), direction(other[i], labels[i]))

    return jackknife(angle, len(labels), unit="cosine")
