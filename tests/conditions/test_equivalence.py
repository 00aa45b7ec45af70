from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from titer.conditions.parts.equivalence import tost


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
