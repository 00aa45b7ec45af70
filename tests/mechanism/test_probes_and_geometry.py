from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from titer.mechanism.estimates import jackknife, mean
from titer.mechanism.geometry import (
    cka,
    cka_of,
    components,
    cosine,
    direction,
    grams,
    refusal_of,
    separation,
)
from titer.mechanism.probes import majority, probe
from titer.schema.errors import TiterError

LABELS = np.repeat([1.0, 0.0], 30)
SEEDS = (0, 1, 2)


def states(gap: float, seed: int = 0, d: int = 8) -> np.ndarray:
    """Texts of two classes that lie `gap` apart on the first axis."""
    found = np.random.default_rng(seed).normal(size=(len(LABELS), d))
    found[:, 0] += gap * LABELS
    return found


def test_a_probe_tells_classes_that_are_far_apart_and_has_most_of_their_information() -> None:
    (found,) = probe(x := states(20), LABELS, SEEDS, [x])
    assert found.accuracy.value == 1
    assert found.nats.value is not None and 0.55 < found.nats.value < math.log(2)  # the ridge holds it back
    assert found.accuracy.n == 60 and found.accuracy.seeds == SEEDS


def test_a_probe_of_noise_has_no_information() -> None:
    (found,) = probe(x := states(0), LABELS, SEEDS, [x])
    assert found.nats.value is not None and found.nats.value < 0.05
    assert found.accuracy.low is not None and found.accuracy.low < 0.5


def test_a_probe_of_another_model_is_worse_than_nothing_where_the_classes_have_changed_sides() -> None:
    same, cross = probe(x := states(6) - [3, *[0] * 7], LABELS, SEEDS, [x, x * [-1, *[1] * 7]])
    assert same.accuracy.value is not None and same.accuracy.value > 0.95
    assert cross.accuracy.value is not None and cross.accuracy.value < 0.05
    assert cross.nats.value is not None and cross.nats.value < 0


def test_nats_are_the_gain_over_knowing_how_frequent_the_classes_are() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.repeat([1.0, 0.0], [20, 40])
    x = states(1.0)
    gains = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=4).split(x, labels):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[train], labels[train])
        known = fitted.predict_log_proba(x[test])[np.arange(len(test)), labels[test].astype(int)]
        share = labels[train].mean()
        gains += list(known - np.log(np.where(labels[test] == 1, share, 1 - share)))
    (found,) = probe(x, labels, (4,), [x])
    assert found.nats.value == pytest.approx(float(np.mean(gains)))
    assert majority(labels) == pytest.approx(2 / 3)


def test_states_that_are_all_alike_are_at_chance() -> None:
    flat = np.ones((60, 4))
    (found,) = probe(flat, LABELS, SEEDS, [flat])
    assert found.nats.value == pytest.approx(0, abs=1e-9)


def test_a_class_with_fewer_texts_than_folds_is_refused() -> None:
    with pytest.raises(TiterError, match="fewer than 5 texts"):
        probe(states(1)[:33], LABELS[:33], SEEDS, [states(1)[:33]])


def test_cka_is_the_papers_formula_and_does_not_see_rotation_or_scale() -> None:
    x, y = states(1, 0, 5), states(1, 1, 7)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert cka(grams(x), grams(y)) == pytest.approx(float(expected))
    turned = x @ np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0] * 3 + 1
    assert cka(grams(x), grams(turned)) == pytest.approx(1)
    assert cka_of(x, x).value == pytest.approx(1)
    assert cka_of(x, np.ones((60, 3))).value is None


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    x = np.random.default_rng(0).normal(size=20)
    found = jackknife(lambda i: float(x[i].mean()), 20)
    reach = t.ppf(0.975, 19) * x.std(ddof=1) / math.sqrt(20)
    assert found.low == pytest.approx(x.mean() - reach)
    assert found.high == pytest.approx(x.mean() + reach)


def test_separation_is_the_gap_over_the_spread() -> None:
    x = np.array([[3.0, 1], [3, -1], [0, 1], [0, -1]])
    assert separation(x, np.array([1.0, 1, 0, 0])) == pytest.approx(3)
    assert separation(np.ones((4, 2)), np.array([1.0, 1, 0, 0])) == 0


def test_refusal_directions_are_compared_by_their_angle() -> None:
    x = states(5)
    assert direction(x, LABELS)[0] == pytest.approx(5, abs=1)
    assert refusal_of(x, x, LABELS).value == pytest.approx(1)
    assert refusal_of(x, -x, LABELS).value == pytest.approx(-1)
    assert refusal_of(x, np.zeros_like(x), LABELS).value is None
    assert math.isnan(cosine(np.zeros(2), np.ones(2)))


def test_components_hold_the_variance_of_their_axes() -> None:
    x = np.zeros((60, 3))
    x[:, 1] = np.linspace(-1, 1, 60)
    points, shares = components(x)
    assert shares == pytest.approx((1, 0))
    assert np.abs(points[:, 0]).max() == pytest.approx(1)


def test_scores_that_all_agree_have_no_width_and_none_have_no_value() -> None:
    found = mean(np.full(5, -2.0))
    assert (found.value, found.low, found.high) == (-2, -2, -2)
    assert mean(np.empty(0)).value is None
    share = mean(np.ones(5), share=True)
    assert share.low is not None and share.low < 1
