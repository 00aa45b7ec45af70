from __future__ import annotations

from dataclasses import replace

from handmade import BROKEN, control, seeds

from titer.conditions.parts.bands import curve_band
from titer.conditions.parts.noise import noise_floor
from titer.schema.types import Curve


def later(curves: list[Curve], shift: int = 10) -> list[Curve]:
    return [replace(c, seed=c.seed + shift, record=f"{c.record}-b") for c in curves]


def test_identical_runs_have_no_noise_but_an_interval() -> None:
    floor = noise_floor(control(), later(control()), draws=200)
    assert set(floor) == {"harm", "utility"}
    assert floor["harm"].value == 0 and floor["harm"].low == 0 and (floor["harm"].high or 0) > 0
    assert floor["harm"].seeds == (0, 1, 2, 10, 11, 12) and len(floor["harm"].records) == 6


def test_largest_difference_over_steps_and_configurations() -> None:
    moved = (0.0, 0.1, 0.2, 0.3, 0.9, 0.9, 0.9, 0.9)
    a = [*control(), *control(config="lora")]
    b = [*control(), *seeds(moved, role="undefended", config="lora")]
    floor = noise_floor(a, later(b), draws=200)["harm"]
    assert abs((floor.value or 0) - 0.3) < 1e-9 and "lora at step 5" in floor.method
    assert (floor.low or 0) <= 0.3 <= (floor.high or 0)


def test_nothing_shared_is_none() -> None:
    floor = noise_floor(control(), later(control(config="other")))
    assert floor["harm"].value is None and floor["harm"].high is None


def test_band_rows_drop_unscored_steps() -> None:
    runs = seeds((0.0, None, *BROKEN[2:]))
    rows = curve_band(runs, draws=200)
    assert [r["step"] for r in rows] == [0, 2, 5, 10, 20, 50, 100]
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows)
    assert curve_band([]) == []
