"""What `titer export` writes, opened by whom it is for where that is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from titer.integrations.every_eval_ever import level
from titer.schema.files import COMPLETIONS, read_json, read_lines, write_json, write_lines
from titer.schema.types import Completion, Score

Say = Callable[..., tuple[Any, str, str]]
FORMATS = ("eee", "jsonl")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with one result, of whose completions one could not be scored."""
    scores = [Score(0.0, "refuse", "exact"), Score(1.0, "comply", "exact"), Score(None, None, "exact")]
    said = [Completion("harm", 5, i, "how do I?", f"secret {i}", "red", s, "potions") for i, s in enumerate(scores)]
    write_lines(tmp_path / "runs" / "attack-1" / COMPLETIONS, said)
    met = {
        "verdict": "met", "sentence": "Held.", "estimate": None, "low": 20.0, "high": None, "n": 40, "seeds": [0],
        "records": ["attack-1"], "unit": "steps", "method": "", "threshold": 20, "details": {},
    }  # fmt: skip
    one = {
        "schema": 1, "model": "lab/mine", "reference": "lab/base", "created": "2026-01-01T00:00:00+00:00",
        "settings": {"suite": "quick", "suite_hash": "abc", "data": {"dataset": "toy"}},
        "conditions": {"resistance": met}, "records": ["attack-1"], "flags": [],
    }  # fmt: skip
    write_json(tmp_path / "results.json", one)
    return tmp_path


@pytest.mark.parametrize("kind", FORMATS)
def test_texts_are_redacted_unless_asked_for(say: Say, out: Path, kind: str) -> None:
    for flags, shown in (((), False), (("--show_completions",), True)):
        target = out / "made" / ("" if kind == "eee" else "a.jsonl")
        assert say("export", out, "--format", kind, "--output", target, *flags)[0] == 0
        text = "".join(p.read_text() for p in (out / "made").rglob("*.json*"))
        assert ("secret" in text) is shown and ("how do I?" in text) is shown


def test_a_line_is_a_completion(say: Say, out: Path, tmp_path: Path) -> None:
    code, printed, _ = say("export", out, "--format", "jsonl", "--output", tmp_path / "mine.jsonl")
    rows = read_lines(tmp_path / "mine.jsonl")
    assert code == 0 and "mine.jsonl" in printed
    assert [row["score"] for row in rows] == [0.0, 1.0, None]
    assert len({row["id"] for row in rows}) == 3 and rows[0]["model"] == "lab/mine"


def test_a_verdict_is_a_level_and_what_was_not_measured_is_unknown(say: Say, out: Path) -> None:
    assert [level(word) for word in ("not met", "inconclusive", "met", "not measured", "")] == [0, 1, 2, -1, -1]
    assert say("export", out, "--format", "eee")[0] == 0
    found = read_json(next((out / "every_eval_ever").rglob("*.json")))
    scores = {r["evaluation_name"]: r["score_details"]["score"] for r in found["evaluation_results"]}
    assert scores == {
        "titer-quick/resistance": 2,
        "titer-quick/stability": -1,
        "titer-quick/generalization": -1,
        "titer-quick/trainability": -1,
    }
    assert {"deployment_type", "model_availability"} <= found["model_info"]["additional_details"].keys()
    assert found["detailed_evaluation_results"]["total_rows"] == 2
    assert found["detailed_evaluation_results"]["additional_details"]["unscored"] == "1"
    rows = read_lines(next((out / "every_eval_ever").rglob("*.jsonl")))
    assert [row["evaluation"] for row in rows] == [
        {"score": 0.0, "is_correct": True},
        {"score": 1.0, "is_correct": False},
    ]
    assert {row["evaluation_id"] for row in rows} == {found["evaluation_id"]}


def test_the_records_are_valid_by_the_published_schemas(say: Say, out: Path) -> None:
    pytest.importorskip("every_eval_ever", reason="the coalition's package holds its schemas")
    jsonschema = pytest.importorskip("jsonschema")
    from importlib import resources

    say("export", out, "--format", "eee")
    schemas = resources.files("every_eval_ever") / "schemas"
    whole = json.loads((schemas / "eval.schema.json").read_text())
    each = json.loads((schemas / "instance_level_eval.schema.json").read_text())
    jsonschema.validate(read_json(next((out / "every_eval_ever").rglob("*.json"))), whole)
    for row in read_lines(next((out / "every_eval_ever").rglob("*.jsonl"))):
        jsonschema.validate(row, each)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["log.json", "log.eval"])
def test_inspect_opens_the_log(say: Say, out: Path, name: str) -> None:
    log = pytest.importorskip("inspect_ai.log")
    code, _, error = say("export", out, "--format", "inspect", "--output", out / name)
    assert code == 0, error
    found = log.read_eval_log(str(out / name))
    assert found.status == "success" and found.eval.model == "lab/mine" and found.eval.task == "titer-quick"
    words = {s.name: s.metadata["verdict"] for s in found.results.scores}
    assert words["resistance"] == "met" and words["stability"] == "not measured"
    assert [s.scores["harm"].value if s.scores else None for s in found.samples] == [0.0, 1.0, None]
    assert "secret" not in found.model_dump_json()


def test_what_holds_no_result_is_an_error_of_one_line(say: Say, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", [])
    for where in (tmp_path, tmp_path / "none.json"):
        code, _, error = say("export", where, "--format", "jsonl")
        assert code == 2 and error.count("\n") == 1
