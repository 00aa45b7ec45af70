"""The report's section on what `titer search` found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import synthetic_results as synthetic

from titer.evaluation.output import SEARCH, render_report
from titer.schema.files import write_json

BREACHED: dict[str, Any] = {
    "unit": "steps",
    "budget": 100.0,
    "attacks": ["lora", "sft"],
    "oracle": 20.0,
    "cheapest": 10.0,
    "search": 431.0,
    "spend": {"steps": 870, "tokens": 123456},
    "search_spend": {"steps": 431, "tokens": 54321},
    "best": {
        "attack": {"name": "lora", "options": {"learning_rate": 0.00123456, "lora_r": 4}},
        "replicates": [20.0, 50.0, None],
        "records": ["attack-1", "attack-2"],
    },
    "stopped": "16 proposed settings without a cheaper breach",
    "trials": [{}] * 40,
}


def page(folder: Path, search: dict[str, Any]) -> str:
    one = json.loads(json.dumps(synthetic.result("repnoise")))
    write_json(folder / SEARCH, {"model": one["model"], **search})
    render_report([(one, folder)], folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_report_shows_both_prices_with_the_seeds_behind_them(tmp_path: Path) -> None:
    text = page(tmp_path, BREACHED)
    assert "Adaptive search" in text and "Oracle price, steps" in text
    for part in ("fresh seeds: 20, 50, –", "3 seeds", "431", "54.3k tokens", "870", "attack-1, attack-2"):
        assert part in text
    assert "lora(learning_rate=0.00123, lora_r=4)" in text and "It tried 2 attacks and stopped: 16 proposed" in text


def test_no_breach_is_an_arrow_and_anothers_search_is_not_shown(tmp_path: Path) -> None:
    nothing = {**BREACHED, "oracle": None, "cheapest": None, "search": None, "search_spend": None, "best": None}
    text = page(tmp_path, nothing)
    assert "no setting breached it within 100 steps a trial" in text and "above 100 steps" in text
    assert "Adaptive search" not in page(tmp_path, {**BREACHED, "model": "another"})
