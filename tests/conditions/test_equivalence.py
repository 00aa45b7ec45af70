from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from titer.conditions.parts.bounded import limits, p_at_most
from titer.conditions.parts.equivalence import holm, prompts_needed, seen_loss, tost


def shifted(rng: np.random.Generator, n: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Paired zero-one answers, the first model right `loss` less often."""
    b = (rng.random(n) < 0.9).astype(float)
    return np.where(rng.random(n) < loss / 0.9, 0.0, b), b


def test_type_one_error_at_the_margin() -> None:
    rng, trials = np.random.default_rng(0), 400
    passed = sum(tost(*shifted(rng, 80, 0.1), 0.1).p_below < 0.05 for _ in range(trials))
    assert passed <= binom.ppf(0.999, trials, 0.06)


def test_power_without_a_difference() -> None:
    rng = np.random.default_rng(1)
    passed = sum(tost(*shifted(rng, 80, 0.005), 0.1).p < 0.05 for _ in range(100))
    assert passed >= 90


def test_equal_scores_need_enough_prompts() -> None:
    few, many = np.ones(30), np.ones(80)
    assert tost(few, few, 0.05).p == pytest.approx(0.95**30)
    assert tost(many, many, 0.05).p < 0.05


def test_hidden_difference_bound_keeps_its_level() -> None:
    """A loss at the margin that no prompt happened to show must not pass more often than 5%."""
    n = 59
    assert tost(np.ones(n), np.ones(n), 0.05).p_below == pytest.approx(binom.pmf(0, n, 0.05))


def test_constant_difference_beyond_the_margin_fails() -> None:
    a, b = np.zeros(40), np.full(40, 0.3)
    t = tost(a, b, 0.1)
    assert t.p_below == 1.0 and t.difference == pytest.approx(-0.3)


def test_sides_point_the_right_way() -> None:
    rng = np.random.default_rng(2)
    worse = tost(*shifted(rng, 80, 0.4), 0.1)
    assert worse.p_below > 0.9 and worse.p_above < 0.05


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        tost(np.ones(1), np.ones(1), 0.1)
    with pytest.raises(ValueError, match="positive"):
        tost(np.ones(5), np.ones(5), 0.0)


def test_sparse_losses_at_a_ceiling_keep_the_level() -> None:
    """Where a paired t passes .18 of models that lost exactly the margin, all of it in a few prompts."""
    rng, trials = np.random.default_rng(3), 1000
    for n in (30, 47, 113, 161):
        losses = np.where(rng.random((trials, n)) < 0.05, 1.0, 0.0)
        passed = int((p_at_most(-losses, -0.05) < 0.05).sum())
        assert passed <= binom.ppf(0.999, trials, 0.05)


def test_losses_of_a_whole_prompt_are_clopper_pearsons() -> None:
    row = np.array([1.0] * 4 + [0.0] * 46)
    low, high = limits(row, bounds=(0.0, 1.0), draws=4000)
    exact = binomtest(4, 50).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=3e-3)


def test_holm_is_bonferroni_for_the_smallest_and_never_falls() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({}) == {}


def test_what_n_prompts_can_show() -> None:
    assert prompts_needed(0.05, 0.05) == 59
    few, many = seen_loss(47, 0.05, 0.05), seen_loss(400, 0.05, 0.05)
    assert few is not None and many is not None and few > 0.1 > many > 0.05
    assert seen_loss(2, 0.5, 0.05) is None
