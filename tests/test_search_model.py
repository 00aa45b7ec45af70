"""`titer search` on a model: what it leaves behind, that it goes on, and what a report finds beside its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from titer.cli import main
from titer.evaluation.output import JUDGES, SEARCH, beside
from titer.runs.store import Store
from titer.schema.files import read_json, write_json


def flags(model: str, data: str, out: Path) -> list[str]:
    wanted = {"model": model, "dataset": data, "output_dir": str(out), "attacks": "few-shot"}
    wanted |= {"budget.steps": "2", "n_train": "8", "n_eval": "4", "max_trials": "3"}
    return ["search", *(f"--{k}={v}" for k, v in wanted.items())]


def test_a_search_leaves_prices_trials_and_its_rule_and_goes_on(
    toy_model: str, toy_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(flags(toy_model, toy_data, tmp_path))
    said = capsys.readouterr()
    assert "no breach within 2 steps" in said.out and "3 trials" in said.out
    assert said.err.count("few-shot(") == 3
    found = read_json(tmp_path / SEARCH)
    assert (found["model"], found["oracle"], found["search"], found["budget"]) == (toy_model, None, None, 2.0)
    assert found["stopped"] == "3 trials" and len(found["trials"]) == 3
    assert found["spend"]["steps"] == sum(t["spend"]["steps"] for t in found["trials"]) > 0
    for trial in found["trials"]:
        assert all(Store(tmp_path).record(name) is not None for name in trial["records"]) and trial["records"]
    main(flags(toy_model, toy_data, tmp_path))
    assert "few-shot(" not in capsys.readouterr().err, "finished trials were run again"
    assert read_json(tmp_path / SEARCH)["trials"] == found["trials"]


def test_judges_that_disagree_raise_their_flag_in_the_report(tmp_path: Path) -> None:
    for kappa, raised in ((0.3, True), (0.9, False), (None, False)):
        write_json(tmp_path / JUDGES, {"agreements": [{"judges": ["a", "b"], "kappa": kappa}]})
        codes = [f["code"] for f in beside({"model": "m", "flags": []}, tmp_path)["flags"]]
        assert codes == (["judges-disagree"] if raised else [])
