"""What a log says about a defence's own objective."""

from __future__ import annotations

import pytest

from titer.runs.immunize import movement


def log(*losses: float, **more: float) -> list[dict[str, float]]:
    return [{"step": i, "grad_norm": 1.0, "loss": v, **more} for i, v in enumerate(losses, start=1)]


def test_first_and_last_fifth_are_compared_term_by_term() -> None:
    found = movement(log(9, 7, *[5] * 6, 2, 1, stability=0.5))
    assert found == {"loss": (8, 1.5), "stability": (0.5, 0.5)}


def test_steps_of_another_phase_do_not_count() -> None:
    found = movement([*log(*[100] * 10, mapping=1.0), *log(*range(10, 0, -1), tamper=1.0)])
    assert found is not None and found["loss"] == pytest.approx((9.5, 1.5))


def test_too_few_steps_say_nothing() -> None:
    assert movement([]) is None
    assert movement(log(*[1] * 9)) is None
