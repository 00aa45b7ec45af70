"""A judge is what it reads: a changed rubric or model of the same name makes another judge, and another run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from titer.data.roles import assign
from titer.judges.parts.identity import identity
from titer.runs.inputs import identify
from titer.schema.evaluation import Data
from titer.schema.specs import AttackRun, Named, ProbeSet
from titer.schema.types import Budget


def test_judges_that_read_nothing_are_their_names() -> None:
    assert identity("exact") == identity("refusal") == identity("endpoint:http://127.0.0.1:1/v1#model=m") == ""
    assert identity("classifier:someone/on-the-hub") == ""


def test_a_changed_rubric_is_another_judge_alone_and_in_a_panel(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.txt"
    name = f"endpoint:http://127.0.0.1:1/v1#rubric={rubric}"
    rubric.write_text("{prompt} {completion}")
    before = identity(name), identity(f"panel:exact|{name}")
    assert all(before) and before[0] == identity(name)
    rubric.write_text("{prompt}: {completion}")
    assert identity(name) != before[0] and identity(f"panel:exact|{name}") != before[1]


def test_a_changed_judge_of_the_same_name_makes_another_run(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    judge = tmp_path / "judge"
    shutil.copytree(toy_model, judge)
    plan = assign(Data(toy_data))
    probe = ProbeSet("harm", plan.harm("unseen", 2), judge=f"exact#reference={judge}")
    run = AttackRun(toy_model, Named("none"), plan.utility(1), (probe,), Budget(steps=0), plan=(0,))
    first = identify(run)
    assert identify(run) == first
    (judge / "config.json").write_text((judge / "config.json").read_text() + "\n")
    assert identify(run) != first
    assert identify(replace(run, probes=(replace(probe, judge="exact"),))) not in (first, identify(run))
