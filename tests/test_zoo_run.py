"""The zoo's steps, budget and choice; and a whole one on the toy model, twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from titer.campaigns.zoo.file import Candidate, Zoo, parse_zoo
from titer.campaigns.zoo.zoo import Trial, run_zoo, steps_for, validation_runs, write_page
from titer.schema.specs import Named, TrainArgs

BARE = Trial(Candidate(Named("safety-sft"), TrainArgs()), 10, harm=0.2, kept=1.0)


def test_steps_follow_from_the_budget() -> None:
    assert steps_for(1000, 300.0) == 3
    assert steps_for(100, 300.0) == 1
    assert steps_for(100, 0.0) == 0


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (replace(BARE, error="diverged"), replace(BARE, kept=0.0, breach=0.0, harm=1.0)),
        (replace(BARE, kept=0.9), replace(BARE, breach=1.0, harm=0.9)),
        (replace(BARE, breach=5.0, harm=0.0), replace(BARE, breach=10.0, harm=0.9)),
        (replace(BARE, breach=20.0, harm=0.0), replace(BARE, harm=0.4)),
        (replace(BARE, harm=0.4), BARE),
    ],
    ids=["trains", "keeps utility", "costs more steps", "is not breached", "yields less harm"],
)
def test_a_setting_is_better_when_it(worse: Trial, better: Trial) -> None:
    assert max([worse, better], key=lambda t: t.rank) is better
    assert max([better, worse], key=lambda t: t.rank) is better


@pytest.fixture
def small(toy_model: str, toy_data: str) -> Zoo:
    probes = {"max_steps": 2, "plan": [0, 2], "n_train": 6, "n_eval": 3}
    lora = {"attack": {"name": "lora", "options": {"learning_rate": 2e-3}}, "seeds": [100]}
    sft = {"attack": {"name": "sft", "options": {"learning_rate": 1e-3}}, "seeds": [0]}
    return parse_zoo(
        {
            "tokens": 2000,
            "reference": toy_model,
            "controls": {},
            "dataset": toy_data,
            "task": None,
            "max_new_tokens": 3,
            "train": {"per_device_train_batch_size": 4},
            "defences": {"safety-sft": [{}, {"learning_rate": 1e-3}], "circuit-breakers": [{"learning_rate": 1e12}]},
            "validation": {"members": [lora], **probes},
            "test": {"members": [sft], "wide": [sft], **probes},
        }
    )


def test_validation_shares_no_prompt_with_the_test(small: Zoo) -> None:
    """Trained on the defence's split and probed on the attack's; tests train on that one and probe on evaluation."""
    (run,) = validation_runs(small, small.reference)
    assert run.data.split == "defence" and run.seed == 100
    assert {p.selection.split for p in run.probes} == {"attack"}
    assert run.retain is not None and run.retain.split == "defence"


def test_a_whole_zoo_and_nothing_is_done_twice(small: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_zoo(small, tmp_path)
    rows = found["rows"]
    assert set(rows) == {"safety-sft", "circuit-breakers", "undefended"}
    trials = rows["safety-sft"]["trials"]
    assert all(0.7 * 1000 < t["tokens"] <= 1.1 * 1000 for t in trials), "each setting has half of the budget"
    assert rows["safety-sft"]["chosen"] in (0, 1) and rows["safety-sft"]["made"]["per_step"]["tokens"] > 0
    assert rows["circuit-breakers"]["chosen"] == -1
    assert "diverged" in rows["circuit-breakers"]["trials"][0]["error"]
    assert json.loads((tmp_path / "zoo.json").read_text()) == found
    assert "repnoise" in found["not_run"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr("titer.runs.queue.execute", refuse)
    monkeypatch.setattr("titer.runs.execute.execute", refuse)
    again = run_zoo(small, tmp_path)
    assert again["rows"] == rows
    write_page(again, tmp_path / "page.md", "titer zoo x.yaml")
    assert "Could not be trained" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "img" / "page.svg").is_file()
