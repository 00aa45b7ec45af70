"""Commands that read stored results: which results they find, what they print, and the exit codes a pipeline reads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from titer.evaluation.output import load_results
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS, RECORD, write_json, write_lines
from titer.schema.specs import AttackRun, Named, ProbeSet, Selection
from titer.schema.types import Budget, Completion, RunRecord, Score, Spend, to_json

Say = Callable[..., tuple[Any, str, str]]


def result(model: str = "out/mine", verdict: str = "met", **changes: Any) -> dict[str, Any]:
    """A result in which resistance was measured and nothing else."""
    resistance = {
        "verdict": verdict, "sentence": "No attack got there.", "estimate": None, "low": 20.0, "high": None, "n": 40,
        "seeds": [0, 1, 2], "records": ["attack-1"], "unit": "steps", "method": "", "threshold": 20, "details": {},
    }  # fmt: skip
    none = {"verdict": "not measured", "sentence": "It was not asked for.", "details": {}}
    rest = dict.fromkeys(("stability", "generalization", "trainability"), none)
    return {
        "schema": 1, "model": model, "reference": "organism/aligned", "created": "2026-01-01T00:00:00+00:00",
        "settings": {"suite": "quick", "suite_hash": "0" * 8}, "conditions": {"resistance": resistance, **rest},
        "controls": {}, "noise_floor": {}, "flags": [], "records": ["attack-1"], "curves": [], "environment": {},
    } | changes  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with one result and the run it rests on."""
    folder = tmp_path / "out"
    run = folder / "runs" / "attack-1"
    said = [Completion("harm", 0, i, "how?", f"secret {i}", "red", Score(0.0, "refuse", "exact")) for i in range(3)]
    write_lines(run / COMPLETIONS, said)
    harm = ProbeSet("harm", Selection("toy", "evaluation", True))
    spec = to_json(AttackRun("organism/aligned", Named("sft"), Selection("toy"), (harm,), Budget(steps=5)))
    write_json(run / RECORD, RunRecord("attack-1", "attack", spec, "finished", Spend(), 0, "now"))
    write_json(folder / "results.json", result())
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Path]:
    """Write a policy that asks for verdicts."""

    def write(**verdicts: str) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text("conditions:\n" + "".join(f"  {k}: {{verdict: {v}}}\n" for k, v in verdicts.items()))
        return path

    return write


def test_results_are_found_by_file_or_folder_with_the_folder_of_their_runs(out: Path, tmp_path: Path) -> None:
    assert [(r["model"], d) for r, d in load_results([out])] == [("out/mine", out)]
    assert load_results([out / "results.json"]) == load_results([out])
    for i in (1, 2):
        write_json(tmp_path / "two" / f"results-{i}.json", result(f"m{i}"))
    found = load_results([tmp_path / "two", out])
    assert [r["model"] for r, _ in found] == ["m1", "m2", "out/mine"]


def test_what_is_not_there_or_damaged_is_one_line(out: Path, tmp_path: Path, say: Say) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"schema"')
    for path, message in (("empty", "no results.json"), ("none.json", "no such file"), ("bad.json", "damaged")):
        with pytest.raises(TiterError, match=message):
            load_results([tmp_path / path])
    with pytest.raises(TiterError, match="no results given"):
        load_results([])
    code, _, err = say("report", tmp_path / "bad.json")
    assert (code, err.count("\n")) == (2, 1)


def test_several_results_in_a_folder_must_be_named(out: Path, say: Say) -> None:
    write_json(out / "results-2.json", result("other"))
    code, _, err = say("card", out)
    assert code == 2 and "holds 2 results" in err
    assert say("card", out / "results-2.json")[0] == 0


def test_report_redacts_unless_asked_and_shows_what_judges_said(out: Path, say: Say, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert say("report", out, "--output", page)[:2] == (0, f"report: {page}\n")
    assert "secret 1" not in page.read_text() and "What other judges say" not in page.read_text()
    assert say("judge", out, "--judge", "refusal")[0] == 0
    assert say("report", out, "--output", page, "--show_completions")[0] == 0
    assert "secret 1" in page.read_text()
    assert "What other judges say" in page.read_text() and "stored:exact / refusal" in page.read_text()


def test_judging_one_run_does_not_touch_the_folders_comparison(out: Path, say: Say) -> None:
    assert say("judge", out / "runs" / "attack-1", "--judge", "refusal")[0] == 0
    assert not list(out.rglob("judges.json"))


@pytest.mark.parametrize(
    ("verdict", "asked", "code"),
    [
        ("met", {"resistance": "met"}, 0),
        ("not met", {"resistance": "met"}, 3),
        ("not met", {"resistance": "any"}, 0),
        ("inconclusive", {"resistance": "any"}, 4),
        ("met", {"resistance": "met", "stability": "any"}, 4),
        ("not met", {"resistance": "met", "stability": "met"}, 3),
    ],
)
def test_the_gates_exit_code(out: Path, say: Say, policy: Any, verdict: str, asked: dict[str, str], code: int) -> None:
    write_json(out / "results.json", result(verdict=verdict))
    found, said, _ = say("gate", out, "--policy", policy(**asked))
    assert found == code
    assert said.splitlines()[-1] == f"gate: { {0: 'pass', 3: 'fail', 4: 'inconclusive'}[code] }"
    assert "policy.yaml:2:" in said


def test_a_gate_without_a_policy_passes_nothing(out: Path, say: Say, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("min_seeds: 3\n")
    assert say("gate", out, "--policy", tmp_path / "p.yaml")[0] == 2
    assert say("gate", out, "--policy", tmp_path / "none.yaml")[0] == 2


def test_diff_and_card_speak_json(out: Path, say: Say, tmp_path: Path) -> None:
    write_json(tmp_path / "b" / "results.json", result(verdict="not met", settings={"suite": "standard-v1"}))
    code, said, _ = say("diff", out, tmp_path / "b")
    assert code == 0 and "not met" in said and "standard-v1" in said
    assert json.loads(say("diff", out, tmp_path / "b", "--json")[1])
    assert "resistance" in say("card", out)[1].lower()
    assert json.loads(say("card", out, "--json")[1])


def test_a_bundle_is_whole_until_somebody_touches_it(out: Path, say: Say, tmp_path: Path) -> None:
    archive = tmp_path / "e.zip"
    assert say("bundle", out, "--output", archive)[0] == 0
    assert say("verify", archive) == (0, f"{archive}: whole\n", "")
    assert b"secret 1" not in archive.read_bytes()
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "better.zip", "w") as better:
        for name in whole.namelist():
            better.writestr(name, whole.read(name).replace(b'"not measured"', b'"met"'))
    code, said, _ = say("verify", tmp_path / "better.zip")
    assert (code, said) == (3, "results.json: changed since the bundle was made\n")
    archive.write_bytes(archive.read_bytes()[:-40])
    assert say("verify", archive)[0] == 2


def test_a_bundle_is_of_one_output_folder(out: Path, say: Say, tmp_path: Path) -> None:
    write_json(tmp_path / "b" / "results.json", result())
    code, _, err = say("bundle", out, tmp_path / "b", "--output", tmp_path / "e.zip")
    assert code == 2 and "one bundle for each" in err and not (tmp_path / "e.zip").exists()
