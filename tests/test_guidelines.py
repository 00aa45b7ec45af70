"""The checklist: what a result does not show is never called shown."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from titer.report.sections.guidelines import ITEMS, NOT_SHOWN, PARTLY, SHOWN, guidelines

CONDITIONS = ("resistance", "stability", "generalization", "trainability")
SETS = ("inside", "outside", "over_refusal", "harm", "likelihood", "jailbreak:prefill")
EVEN_WITHOUT_MEASURING = {"G2": SHOWN, "G8": PARTLY, "G15": SHOWN, "G16": SHOWN, "G14": PARTLY, "G18": PARTLY}


def member(attack: str = "sft", **options: Any) -> dict[str, Any]:
    return {"attack": {"name": attack, "options": options}, "seeds": [0, 1, 2]}


def result() -> dict[str, Any]:
    """A result that shows all that a result can."""
    members = [member(learning_rate=r, lr_scheduler_type="cosine") for r in (1e-4, 1e-3, 1e-2)]
    members += [member("benign-then-harmful", ratio=0.5), member("side-step", rank=4)]
    roles = ("model", "undefended", "random")
    kinds = ("unseen", "withheld", "cross:curses")
    curves = [{"role": r, "data": d, "points": [{}] * 5} for r in roles for d in kinds]
    found = {c: {"verdict": "met", "details": {}} for c in CONDITIONS}
    found["stability"]["details"] = {"sets": {name: {} for name in SETS}}
    return {
        "settings": {
            "suite_members": {"members": members, "max_steps": 50},
            "immunization": {"record": {"spend": {"steps": 10}}},
        },
        "controls": {"undefended": {"breached": {"value": 1.0}}},
        "conditions": found,
        "flags": [],
        "curves": curves,
        "data_audit": {"defence_saw": "these"},
    }


def status(found: dict[str, Any]) -> dict[str, str]:
    return {row["id"]: row["status"] for row in guidelines(found)}


def test_a_full_result_shows_all_but_what_no_record_can() -> None:
    assert [i for i, _, _ in ITEMS] == [f"G{n}" for n in range(1, 20)]
    assert status(result()) == {i: NOT_SHOWN if i == "G19" else SHOWN for i, _, _ in ITEMS}


def test_an_empty_result_shows_nothing_that_was_measured() -> None:
    bare = {
        "settings": {},
        "controls": {},
        "flags": [],
        "curves": [{"role": "undefended", "data": "measure", "points": [{}]}],
        "conditions": {c: {"verdict": "not measured", "details": {}} for c in CONDITIONS},
    }
    assert status(bare) == {i: EVEN_WITHOUT_MEASURING.get(i, NOT_SHOWN) for i, _, _ in ITEMS}


def drop_rates(r: dict[str, Any]) -> None:
    r["settings"]["suite_members"]["members"] = [member(learning_rate=1e-3), member(learning_rate=1e-2)]


def one_attack(r: dict[str, Any]) -> None:
    r["settings"]["suite_members"]["members"] = [member(learning_rate=x) for x in (1e-4, 1e-3, 1e-2)]


def two_seeds(r: dict[str, Any]) -> None:
    r["settings"]["suite_members"]["members"][1]["seeds"] = [0, 1]


def harm_after_tasks(r: dict[str, Any]) -> None:
    one_attack(r)
    r["conditions"]["trainability"]["details"] = {"tasks": {"count": {"harm": {"model": {}}}}}


@pytest.mark.parametrize(
    ("change", "item", "expected"),
    [
        (lambda r: r["settings"]["suite_members"].update(max_steps=None), "G1", NOT_SHOWN),
        (lambda r: r["controls"].clear(), "G3", NOT_SHOWN),
        (lambda r: r["controls"]["undefended"].update(breached={"value": 0.0}), "G3", NOT_SHOWN),
        (lambda r: r["flags"].append({"code": "unsafe-at-start"}), "G3", PARTLY),
        (lambda r: r["conditions"]["resistance"].update(verdict="not measured"), "G4", NOT_SHOWN),
        (lambda r: r["conditions"]["resistance"].update(verdict="inconclusive"), "G4", SHOWN),
        (lambda r: [c.update(points=[{}] * 3) for c in r["curves"]], "G5", NOT_SHOWN),
        (drop_rates, "G6", PARTLY),
        (one_attack, "G6", PARTLY),
        (one_attack, "G7", NOT_SHOWN),
        (lambda r: r.update(curves=[c for c in r["curves"] if c["data"] != "withheld"]), "G9", NOT_SHOWN),
        (lambda r: r.update(curves=[c for c in r["curves"] if c["data"] != "cross:curses"]), "G10", NOT_SHOWN),
        (lambda r: r["conditions"]["stability"]["details"]["sets"].pop("over_refusal"), "G11", PARTLY),
        (lambda r: r["conditions"]["stability"]["details"].clear(), "G11", NOT_SHOWN),
        (lambda r: r["conditions"]["trainability"].update(verdict="not measured"), "G12", NOT_SHOWN),
        (one_attack, "G13", NOT_SHOWN),
        (harm_after_tasks, "G13", PARTLY),
        (lambda r: r.update(curves=[c for c in r["curves"] if c["role"] != "random"]), "G14", PARTLY),
        (two_seeds, "G17", PARTLY),
        (lambda r: r["settings"].pop("immunization"), "G18", PARTLY),
    ],
)
def test_what_is_taken_away_is_missed(change: Any, item: str, expected: str) -> None:
    changed = deepcopy(result())
    change(changed)
    assert status(changed)[item] == expected
    assert status(result())[item] == SHOWN


@pytest.mark.parametrize(("saw", "said"), [("these", SHOWN), ("not recorded", PARTLY), ("others", NOT_SHOWN)])
def test_disjoint_data_is_shown_only_for_the_prompts_the_defence_saw(saw: str, said: str) -> None:
    assert status(result() | {"data_audit": {"defence_saw": saw}})["G8"] == said
