"""A small classifier of texts: words in a bag, logistic regression, every text judged by a fit that left it out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titer.data.splits import normalise

Floats = NDArray[np.float64]


def probabilities(texts: Sequence[str], labels: Sequence[bool], *, l2: float = 1.0, folds: int = 5) -> list[float]:
    """How likely each text has the label, by a fit on the other folds; all the same when there is one label only.

    Texts are dealt to folds in an order that depends on nothing but their number.
    """
    truth = np.array(labels, np.float64)
    if len(set(labels)) < 2 or len(texts) < folds:
        return [float(truth.mean()) if len(truth) else 0.0] * len(texts)
    bags = bag_of_words(texts)
    numbers = list(range(len(texts)))
    random.Random(len(texts)).shuffle(numbers)
    found = np.zeros(len(texts))
    for fold in range(folds):
        held = np.array(numbers[fold::folds])
        rest = np.setdiff1d(np.arange(len(texts)), held)
        weights = fit(bags[rest], truth[rest], l2)
        found[held] = 1 / (1 + np.exp(-(bags[held] @ weights)))
    return [float(p) for p in found]


def bag_of_words(texts: Sequence[str]) -> Any:
    """Which text (row) has which word (column), as a sparse matrix of ones; the last column is the constant."""
    from scipy.sparse import csr_array

    words: dict[str, int] = {}
    bags = [{words.setdefault(w, len(words)) for w in normalise(text).split()} for text in texts]
    rows = [i for i, bag in enumerate(bags) for _ in range(len(bag) + 1)]
    columns = [c for bag in bags for c in (*sorted(bag), len(words))]
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(words) + 1))


def fit(bags: Any, labels: Floats, l2: float) -> Floats:
    """Weights that minimise the sum of log losses + l2/2 x their square norm (the constant's is not counted)."""
    from scipy.optimize import minimize

    penalty = np.full(bags.shape[1], l2)
    penalty[-1] = 0.0

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = bags @ weights
        value = np.logaddexp(0, scores).sum() - labels @ scores + 0.5 * penalty @ weights**2
        return float(value), bags.T @ (1 / (1 + np.exp(-scores)) - labels) + penalty * weights

    start = np.zeros(bags.shape[1])
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x, np.float64)
