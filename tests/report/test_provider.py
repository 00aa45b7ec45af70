"""The sentences of the API threat model's page, from made-up rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.report.provider import sentences


def row(guard: str, hs: tuple[float, float], fa: tuple[float, float]) -> Mapping[str, Any]:
    ends = {"hs_difference": hs, "fa_difference": fa}
    return {"guard": guard, "ratio": 0.1, **{k: {"low": low, "high": high} for k, (low, high) in ends.items()}}


def said(*rows: Mapping[str, Any]) -> list[str]:
    return list(sentences({"model": "runs/x/mine", "rows": [row("none", (0, 0), (0, 0)), *rows]}))


def test_only_what_lies_beyond_the_interval_is_said() -> None:
    free, dear = row("a", (-0.3, -0.1), (-0.1, 0.1)), row("b", (-0.3, -0.1), (-0.2, -0.1))
    nothing = row("c", (-0.3, 0.0), (-0.2, -0.1))
    start = "mine, poison ratio 0.1: "
    assert said(free, dear, nothing) == [
        f"{start}HS is measurably lower with a at no measurable cost in FA; with b at a cost in FA."
    ]
    assert said(dear) == [f"{start}HS is measurably lower with b at a cost in FA."]
    assert said(nothing) == [f"{start}no guard lowers HS measurably."]
    unmeasured = {**nothing, "hs_difference": {"low": None, "high": None}}
    assert said(unmeasured) == [f"{start}no guard lowers HS measurably."]
    assert said() == []
