import json
from copy import deepcopy

import synthetic_results as synthetic

from titer.report.compare import diff, diff_text

A, B = synthetic.result("adversarial"), synthetic.result("repnoise")


def test_verdicts_stand_side_by_side() -> None:
    found = diff(A, B, draws=100)
    resistance = found["conditions"]["resistance"]
    assert (resistance["a"]["verdict"], resistance["b"]["verdict"]) == ("not met", "met")
    assert not resistance["same_verdict"]
    assert found["models"] == ["synthetic/adversarial", "synthetic/repnoise"]


def test_curves_are_compared_pairwise_at_the_last_probe() -> None:
    rows = {(r["config"], r["data"]): r for r in diff(A, B, draws=100)["curves"]}
    row = rows["sft(learning_rate=0.001)", "unseen"]
    assert row["paired"] and row["step"] <= 5 and row["n"] == 40
    assert row["low"] <= row["difference"] <= row["high"] < 0


def test_other_data_is_not_paired() -> None:
    other = deepcopy(B)
    other["settings"]["data"] = {"dataset": "other"}  # type: ignore[index]
    rows = diff(A, other, draws=100)["curves"]
    assert rows and all(not r["paired"] and r["low"] is None for r in rows)


def test_a_result_does_not_differ_from_itself() -> None:
    found = diff(B, B, draws=100)
    assert found["settings"] == found["environment"] == [] and found["flags"] == {"only_a": [], "only_b": []}
    assert all(c["same_verdict"] for c in found["conditions"].values())
    assert all(r["difference"] == 0 for r in found["curves"])


def test_settings_and_flags_that_differ_are_listed() -> None:
    other = {**B, "settings": {**B["settings"], "phi": 0.3, "extra": True}, "flags": []}  # type: ignore[dict-item]
    found = diff(B, other, draws=100)
    assert found["settings"] == [
        {"key": "phi", "a": "0.5", "b": "0.3"},
        {"key": "extra", "a": None, "b": "yes"},
    ]
    assert found["flags"] == {"only_a": ["few-seeds"], "only_b": []}


def test_it_is_json_and_text() -> None:
    found = diff(A, B, draws=100)
    json.dumps(found)
    text = diff_text(found)
    assert "* resistance" in text and "settings that differ\n  none" in text and "paired, n 40" in text
