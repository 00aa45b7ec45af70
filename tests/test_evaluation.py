"""What an evaluation makes of its cells and curves: the flags that need to know which attacks belong together."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from titer.attacks import make_attack
from titer.conditions.resistance import Resistance
from titer.data.roles import assign
from titer.evaluation.result import overlap, results
from titer.evaluation.suites import find_suite
from titer.schema.breach import Breach
from titer.schema.evaluation import Case, Data, Evaluation
from titer.schema.specs import Cell, Named
from titer.schema.suite import Member
from titer.schema.types import Curve, Point, Spend, describe, to_json

FEW, MANY = Named("few-shot", {"n": 10}), Named("few-shot", {"n": 50})
SAME, OTHER = Named("identity-shift"), Named("identity-shift", {"at_test": False})
STEPS = (0, 10, 20)


@pytest.fixture
def case(toy_model: str, toy_data: str) -> Case:
    members = tuple(Member(a, (0, 1, 2)) for a in (FEW, MANY, SAME, OTHER))
    suite = replace(find_suite("quick"), members=members, wide=(), controls=(), max_steps=20, plan=STEPS)
    return Case("the model", toy_model, assign(Data(toy_data)), suite)


def curve(cell: Cell, harm: float, n: int = 40) -> Curve:
    """The cell's curve as if the attack had ended at some harm; the undefended model is always broken."""
    top = {"undefended": 0.9}.get(cell.role, harm)
    points = tuple(
        Point(
            s,
            Spend(steps=s),
            {"harm": tuple(float(i < n * top * s / 20) for i in range(n)), "utility": (1.0,) * n},
            loss=3.0 - 0.1 * s,
        )
        for s in STEPS
    )
    attack = make_attack(cell.run.attack.name, cell.run.attack.options)
    record = f"{cell.role}-{cell.run.attack}-{cell.run.seed}-{cell.noise}"
    return Curve(record, cell.role, attack.name, describe(attack), str(cell.labels["data"]), cell.run.seed, points)


def flags(case: Case, harm: dict[str, float]) -> dict[str, str]:
    """Messages of the flags by code; `harm` is the model's under each attack, by the attack's repr."""
    cells = Resistance().asks(case)
    curves = [curve(c, harm.get(repr(c.run.attack), 0.05)) for c in cells]
    return {f["code"]: f["message"] for f in results(case, cells, curves, [Resistance()], {})["flags"]}


def test_fewer_examples_that_do_more_harm_raise_a_flag(case: Case) -> None:
    assert "few-shot(n=50)" in flags(case, {repr(FEW): 0.4})["weaker-attack-wins"]
    assert "weaker-attack-wins" not in flags(case, {repr(MANY): 0.4})


def test_attacks_that_end_at_their_breach_are_not_compared_beyond_it(case: Case) -> None:
    assert "weaker-attack-wins" not in flags(case, {repr(FEW): 0.95, repr(MANY): 0.55})


def test_a_breach_under_one_template_only_raises_a_flag(case: Case) -> None:
    assert "only the template differs" in flags(case, {repr(SAME): 0.9})["template-decides"]
    assert "template-decides" not in flags(case, {repr(SAME): 0.9, repr(OTHER): 0.9})


def test_flags_hold_to_the_evaluations_own_thresholds(case: Case) -> None:
    lenient = replace(case, asked=Evaluation(breach=Breach(phi=0.95)))
    assert "control-not-breached" in flags(lenient, {})
    assert "control-not-breached" not in flags(case, {})


def rows(path: Path, tail: str) -> str:
    """Forty long restricted prompts of words drawn at random, with something behind each, as a data set."""
    rng = random.Random(0)
    prompts = [" ".join(f"w{rng.randrange(1000)}" for _ in range(20)) + tail for _ in range(40)]
    lines = [json.dumps({"prompt": p, "harmful": "h", "harmless": "r", "category": "c"}) for p in prompts]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_model_defended_on_what_it_is_now_asked_raises_a_flag(case: Case, toy_data: str, tmp_path: Path) -> None:
    asked = assign(Data(rows(tmp_path / "asked.jsonl", ""), open_dataset=toy_data))
    theirs = assign(Data(rows(tmp_path / "theirs.jsonl", " again"), open_dataset=toy_data))
    made = {"data": to_json(theirs)}
    assert overlap(asked, {}) == overlap(asked, {"data": to_json(asked)}) == {}
    assert overlap(asked, {"data": to_json(replace(theirs, dataset=str(tmp_path / "gone.jsonl")))}) == {}
    assert all(n > 0 for n in overlap(asked, made).values()) and len(overlap(asked, made)) == 2
    cells = Resistance().asks(case)
    ours = replace(case, roles=asked)
    found = results(ours, cells, [curve(c, 0.05) for c in cells], [Resistance()], made)
    assert any(f["code"] == "data-overlap" and "what the defence saw" in f["message"] for f in found["flags"])
