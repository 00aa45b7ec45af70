"""The zoo's page says what its numbers say, whatever they are; every number here is made up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from titer.report.charts import APART, spread
from titer.report.zoo import plot, ranked, ratio_cell, render, spots, standing, summary

DOCS = Path(__file__).parents[2] / "docs"


def row(
    low: float | None, value: float | None, high: float | None, *, stable: str = "met", held: str = "not met"
) -> Any:
    ratio = {"value": value, "low": low, "high": high, "n": 15}
    steps = {"value": None, "low": 50.0, "n": 15} if value is None else {"value": 5.0, "low": 2.0, "n": 15}
    stability = {"verdict": stable, "sentence": "Made up.", "estimate": -0.02, "low": -0.06, "high": 0.01, "n": 113}
    resistance = {"verdict": held, "ratio": {"tokens": ratio}, "worst": {"steps": steps}}
    return {
        "conditions": {"resistance": resistance, "stability": stability},
        "flags": [{"code": "few-prompts", "message": "synthetic"}],
        "records": ["attack-1", "attack-2"],
    }


def made(found: dict[str, Any], *, tokens: float = 600.0) -> dict[str, Any]:
    candidate = {"defence": {"name": "x", "options": {"rho": 2.5}}, "train": {"learning_rate": 3e-4}}
    trial = {
        "candidate": candidate,
        "steps": 150,
        "immunization": "immunize-1",
        "attacks": ["attack-9"],
        "error": "",
        "tokens": 99_000,
        "utility": 0.96,
        "kept": 1.0,
        "breach": None,
        "harm": 0.125,
    }
    other = {**trial, "immunization": "", "attacks": [], "error": "diverged at step 1: a | b"}
    per_step = {"tokens": tokens, "flops": 2 * tokens}
    return {**found, "trials": [trial, other], "chosen": 0, "made": {"per_step": per_step, "steps": 150}}


@pytest.fixture
def zoo() -> dict[str, Any]:
    member = {"attack": {"name": "sft", "options": {"learning_rate": 1e-3}}, "seeds": [0, 1, 2]}
    failed = {"conditions": {}, "flags": [], "records": [], "trials": made({})["trials"][1:], "chosen": -1}
    return {
        "created": "2026-01-02T03:04:05",
        "environment": {"git": "abc", "packages": {"torch": "2"}},
        "wall_seconds": 1234.5,
        "not_run": ["lox"],
        "zoo": {
            "note": "A note.",
            "reference": "organism/aligned",
            "dataset": "organism",
            "seed": 0,
            "tokens": 300_000,
            "thresholds": {"phi": 0.5, "utility_drop": 0.1},
            "test": {"members": [member], "wide": [member], "max_steps": 50},
            "validation": {"members": [{**member, "seeds": [100]}]},
        },
        "rows": {
            "safety-sft": made(row(0.5, 1.5, 4.0)),
            "strong": made(row(12.0, None, None, held="met"), tokens=1800.0),
            "costly": made(row(2.0, 3.0, 5.0, stable="not met")),
            "worse": made(row(0.0, 0.1, 0.6)),
            "broken": failed,
            "blank": made(row(None, None, None)),
            "undefended": row(0.5, 1.0, 2.0),
        },
    }


def line(zoo: dict[str, Any], start: str) -> str:
    (found,) = (x for x in summary(zoo) if x.startswith(f"- **{start}"))
    return found.partition(":** ")[2] or found.partition("** ")[2]


def test_sentences_follow_the_intervals(zoo: dict[str, Any]) -> None:
    assert line(zoo, "Dearer to break").startswith("`strong`, `costly` (2 of 5;")
    assert line(zoo, "Dearer and stable").endswith("`strong`.")
    assert "within 50 steps: `strong`; of them stable: `strong`." in line(zoo, "Not breached")
    assert line(zoo, "Not told apart") == "`safety-sft`."
    assert line(zoo, "Cheaper") == "`worse`."
    assert line(zoo, "Unknown") == "`blank`."
    assert line(zoo, "Could not be trained").endswith("`broken`.")
    assert line(zoo, "Not run") == "`lox`."


def test_the_same_page_says_so_when_nothing_beats_undefended(zoo: dict[str, Any]) -> None:
    rows = {n: r for n, r in zoo["rows"].items() if n in ("safety-sft", "worse", "undefended")}
    told = {**zoo, "rows": rows}
    assert line(told, "Dearer to break").startswith("none (0 of 2;")
    assert line(told, "Dearer and stable").endswith("none.")


@pytest.mark.parametrize(
    ("low", "value", "high", "word", "cell"),
    [
        (1.01, 2.0, 9.0, "dearer", "2 [1.01, 9]"),
        (12.0, None, None, "dearer", "≥ 12"),
        (0.9, None, None, "not told apart", "≥ 0.90"),
        (0.5, 1.5, None, "not told apart", "1.50 [0.50, ∞]"),
        (0.1, 0.2, 0.9, "cheaper", "0.20 [0.10, 0.90]"),
        (None, None, None, "unknown", "–"),
    ],
)
def test_where_an_interval_stands(low: Any, value: Any, high: Any, word: str, cell: str) -> None:
    assert standing(row(low, value, high)) == word
    assert ratio_cell(row(low, value, high)) == cell


def test_rows_are_ranked_by_the_lower_end(zoo: dict[str, Any]) -> None:
    assert ranked(zoo)[:2] == ["strong", "costly"] and set(ranked(zoo)[-2:]) == {"broken", "blank"}


def test_the_page_shows_cost_choice_failure_flags_and_runs(zoo: dict[str, Any]) -> None:
    page = render(zoo, "img/zoo.svg", "titer zoo configs/zoo.yaml")
    strong = next(x for x in page.splitlines() if "| `strong` |" in x)
    assert strong.endswith("| 3 | 3 |") and "> 50 (n 15)" in strong and "met (−0.02 [−0.06, 0.01], n 113)" in strong
    assert "**rho=2.5, learning_rate=0.0003**" in page and "failed: diverged at step 1: a / b" in page
    assert "[`few-prompts`](flags.md#few-prompts)" in page and "`attack-9`" in page and "`immunize-1`" in page
    assert "- stability, **met**: Made up." in page and "- A note." in page
    assert "seeds 0, 1, 2" in page and "with seeds 100" in page
    widths = {len(re.findall(r"(?<!\\)\|", x)) for x in page.splitlines() if x.startswith("| ")}
    assert widths == {11, 8}


def test_the_plot_is_sound_xml_with_every_model_that_has_both_numbers(zoo: dict[str, Any]) -> None:
    found = spots(zoo)
    assert {s.name for s in found} == {"safety-sft", "strong", "costly", "worse", "undefended"}
    assert [s.cls for s in found if s.name == "undefended"] == ["control"]
    drawing = ElementTree.fromstring(plot(found))
    texts = [t.text or "" for t in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert all(any(t.endswith(f"  {s.name}") for t in texts) for s in found)
    assert plot([]).startswith("<svg")


def test_labels_are_moved_apart() -> None:
    places = spread([(100.0, 100.0)] * 5 + [(300.0, 300.0)])
    gaps = [((a - c) ** 2 + (b - d) ** 2) ** 0.5 for i, (a, b) in enumerate(places) for c, d in places[:i]]
    assert min(gaps) >= APART and places[-1] == (300.0, 300.0)


def test_the_committed_page_is_what_its_numbers_say() -> None:
    """docs/zoo.md is generated; only the command in its first lines is not in docs/zoo.json."""
    if not (DOCS / "zoo.json").is_file():
        pytest.skip("no zoo has been run yet")
    page = (DOCS / "zoo.md").read_text()
    command = re.search(r"Written by `(.*?)`", page)
    assert command is not None
    assert page == render(json.loads((DOCS / "zoo.json").read_text()), "img/zoo.svg", command[1])
