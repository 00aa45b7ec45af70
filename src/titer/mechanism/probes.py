"""Linear probes: can harmful be told from harmless at a layer, and is it written there the way it used to be?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from titer.conditions.parts.curves import Array
from titer.mechanism.estimates import mean
from titer.schema.errors import TiterError
from titer.schema.types import Estimate

FOLDS = 5
STRENGTH = 1.0  # inverse of the ridge, scikit-learn's default


@dataclass(frozen=True)
class Probe:
    """A probe on the texts that it was not fitted on, over folds and seeds.

    Attributes:
        accuracy: share of texts told right.
        nats: usable information, log p(class | state) - log p(class): 0 where the probe knows nothing more than how
            frequent the classes are, below 0 where it is worse than that.
    """

    accuracy: Estimate
    nats: Estimate


@dataclass(frozen=True)
class HeldOut:
    """What a probe says of each text that it was not fitted on, (seeds, texts): whether right, and nats gained."""

    right: Array
    gained: Array

    def probe(self, seeds: Sequence[int]) -> Probe:
        """Its accuracy and usable information."""
        return Probe(
            mean(self.right, seeds=seeds, unit="accuracy", share=True), mean(self.gained, seeds=seeds, unit="nats")
        )


def held_out(fitted_on: Array, labels: Array, seeds: Sequence[int], tested_on: Sequence[Array]) -> list[HeldOut]:
    """Ridge logistic regressions on standardised states (texts, d), each tested on the same held-out texts of models.

    `fitted_on` holds the states of the model that the probe learns from; `tested_on` those of the models it is held
    to, text for text, so `[fitted_on]` is the same-model probe and another model's states the cross-model one.
    Stratified folds are drawn anew for each seed, alike for all models. Source: RepNoise (2405.14577) section 5 and
    app. G; usable information: Xu et al. 2020 (2002.10689). Raises `TiterError` for a class with fewer texts than
    folds.
    """
    if min(int(labels.sum()), int((1 - labels).sum())) < FOLDS:
        raise TiterError(f"probes: a class has fewer than {FOLDS} texts: raise --n or use a larger data set")
    right = np.empty((len(tested_on), len(seeds), len(labels)))
    gained = np.empty_like(right)
    for s, seed in enumerate(seeds):
        for train, test in _folds(labels, seed):
            odds = _odds(fitted_on[train], labels[train], [x[test] for x in tested_on])
            signed = np.where(labels[test] == 1, odds, -odds)
            right[:, s, test] = signed > 0
            prior = np.where(labels[test] == 1, labels[train].mean(), 1 - labels[train].mean())
            gained[:, s, test] = -np.logaddexp(0.0, -signed) - np.log(prior)
    return [HeldOut(r, g) for r, g in zip(right, gained, strict=True)]


def probe(fitted_on: Array, labels: Array, seeds: Sequence[int], tested_on: Sequence[Array]) -> list[Probe]:
    """`held_out` in two estimates a model."""
    return [found.probe(seeds) for found in held_out(fitted_on, labels, seeds, tested_on)]


@dataclass(frozen=True)
class Layer:
    """The probes of one layer of a model, and of the reference.

    Attributes:
        same: fitted and tested on the model.
        cross: fitted on the reference, tested on the model.
        change: nats of `same` less those of the reference's own probe, text by text.
    """

    same: Probe
    cross: Probe
    change: Estimate


def layer(own: Array, base: Array, labels: Array, seeds: Sequence[int]) -> Layer:
    """The probes of a layer from the model's states and the reference's, (texts, d) each."""
    (same,) = held_out(own, labels, seeds, [own])
    before, cross = held_out(base, labels, seeds, [base, own])
    change = mean(same.gained - before.gained, seeds=seeds, unit="nats")
    return Layer(same.probe(seeds), cross.probe(seeds), change)


def _folds(labels: Array, seed: int) -> list[tuple[Array, Array]]:
    from sklearn.model_selection import StratifiedKFold

    return list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels))


def _odds(states: Array, labels: Array, tested: Sequence[Array]) -> Array:
    """Log odds of the class 1, (models, texts)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000)).fit(states, labels)
    return np.stack([fitted.decision_function(x) for x in tested])


def majority(labels: Array) -> float:
    """The accuracy of always saying the more frequent class."""
    return float(max(labels.mean(), 1 - labels.mean()))
