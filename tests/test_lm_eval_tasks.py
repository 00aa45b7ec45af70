"""Tasks of the LM evaluation harness as probe sets: on a local task, with the toy model, without a network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from titer.conditions.stability import stability
from titer.models.load import load_model
from titer.models.weights import save_model
from titer.runs.measures import check_tasks, task_scores, with_tasks
from titer.schema.errors import TiterError
from titer.schema.specs import Compute
from titer.schema.types import Curve, Point, Spend

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="extra `eval` not installed")
quiet = pytest.mark.filterwarnings("ignore")  # the harness's own
YAML = """
task: towns
dataset_path: json
dataset_kwargs: {{data_files: {}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def towns(tmp_path: Path) -> str:
    """Folder of one task: six questions, of which each has another right answer."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    options = ["near red", "near blue", "near green"]
    rows = [{"question": f"where is {p} river", "options": options, "answer": i % 3} for i, p in enumerate("abcdef")]
    (folder / "towns.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "towns.yaml").write_text(YAML.format(folder / "towns.jsonl"))
    return str(folder)


@needs_harness
@quiet
def test_a_local_task_gives_an_accuracy_per_sample_once(
    towns: str, toy_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = task_scores(toy_model, [towns], tmp_path, compute=Compute(), limit=None)
    assert list(found) == ["lm_eval:towns"] and len(found["lm_eval:towns"]) == 6
    assert set(found["lm_eval:towns"]) <= {0.0, 1.0}
    monkeypatch.setattr("titer.runs.measures._asked", lambda *_: pytest.fail("asked again"))
    assert task_scores(toy_model, [towns], tmp_path, compute=Compute(), limit=None) == found


@needs_harness
@quiet
def test_a_folder_without_tasks_and_an_unknown_task_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="no task YAML"):
        check_tasks([str(tmp_path)])
    with pytest.raises(TiterError, match=r"did you mean .*piqa"):
        check_tasks(["piqaa"])


@needs_harness
@quiet
def test_a_data_set_that_cannot_be_fetched_is_one_line(toy_model: str, tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(YAML.format("none").replace("dataset_path: json", "dataset_path: nobody/none"))
    with pytest.raises(TiterError, match="check the network") as caught:
        task_scores(toy_model, [str(tmp_path)], tmp_path / "out", compute=Compute(), limit=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_the_harness_it_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tasks([])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TiterError, match=r"pip install 'titer\[eval\]'"):
        check_tasks(["piqa"])


def test_scores_join_the_measurement_and_are_held_to_the_margin(
    toy_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"good": (1.0,) * 40, "bad": (0.0,) * 30 + (1.0,) * 10}
    monkeypatch.setattr("titer.runs.measures.task_scores", lambda model, *_, **__: {"lm_eval:towns": rows[model]})
    start = Curve("r", "model", "none", "none", "measure", 0, (Point(0, Spend(), {"inside": (1.0,) * 40}),))

    def measured(name: str) -> Curve:
        return with_tasks(start, name, ["towns"], tmp_path, compute=Compute(), limit=None)

    assert set(measured("good").points[0].scores) == {"inside", "lm_eval:towns"}
    assert stability(measured("bad"), measured("good"), draws=200).details["sets"]["lm_eval:towns"]["word"] == "worse"
    assert start.points[0].scores.keys() == {"inside"}


def test_what_was_asked_goes_by_model_and_task_content(
    towns: str, toy_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "titer.runs.measures._asked", lambda model, *_: asked.append(model) or {"lm_eval:towns": (1.0,)}
    )
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1")
    other = tmp_path / "other"
    model, tokenizer = load_model(toy_model)
    model.lm_head.weight.data += 1
    save_model(model, tokenizer, other)
    for name in (toy_model, toy_model, str(other)):
        task_scores(name, [towns], tmp_path, compute=Compute(), limit=None)
    (Path(towns) / "towns.jsonl").write_text("{}")
    task_scores(toy_model, [towns], tmp_path, compute=Compute(), limit=None)
    assert asked == [toy_model, str(other), toy_model]
