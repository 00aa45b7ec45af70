"""What a log says about a defence's own objective."""

from __future__ import annotations

import pytest

from titer.objective import movement


def log(*losses: float, **more: float) -> list[dict[str, float]]:
    return [{"step": i, "loss": v, **more} for i, v in enumerate(losses, start=1)]


def test_first_and_last_fifth_are_compared() -> None:
    assert movement(log(9, 7, *[5] * 6, 2, 1)) == pytest.approx((8, 1.5))


def test_steps_of_another_phase_do_not_count() -> None:
    assert movement([*log(*[100] * 10, mapping=1.0), *log(*range(10, 0, -1), tamper=1.0)]) == pytest.approx((9.5, 1.5))


def test_too_few_steps_say_nothing() -> None:
    assert movement([]) is None
    assert movement(log(*[1] * 9)) is None
