from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import titer
from titer.mechanism.examine import PAGE, RESULT, examine, read_result
from titer.mechanism.summary import sentences
from titer.report.mechanism import render
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.mechanism import Mechanism


@pytest.fixture(scope="module")
def defended(tmp_path_factory: pytest.TempPathFactory, build_model: Callable[..., Any], tokenizer: Any) -> str:
    """The toy model with its last layer moved."""
    folder = tmp_path_factory.mktemp("defended") / "moved"
    model = build_model()
    with torch.no_grad():
        for p in model.model.layers[1].parameters():
            p.mul_(1.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def asked(toy_model: str, toy_data: str, **changes: Any) -> Mechanism:
    data = Data(dataset=toy_data)
    return Mechanism(toy_model, data=data, n=8, seeds=(0, 1), forced=(0, 1), **changes)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, toy_model: str, toy_data: str, defended: str) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("mechanism")
    question = asked(toy_model, toy_data, attacked=(toy_model,), ignorant=defended)
    return out, examine(defended, question, output_dir=out)


def test_every_model_is_measured_and_stored(found: tuple[Path, Any]) -> None:
    out, result = found
    assert [s["role"] for s in result["subjects"]] == ["reference", "ignorant", "model", "attacked"]
    reference, _, model, attacked = result["subjects"]
    assert len(model["lens"]["harmful"]) == 3 and model["lens"]["harmful"][0]["n"] == result["n"]["harmful"]
    assert [layer["identical"] for layer in model["weights"]["layers"]] == [True, False]
    assert all(layer["identical"] for layer in attacked["weights"]["layers"])
    assert attacked["tasks"]["defence_attack"] == pytest.approx(-1)
    assert reference["geometry"]["cka"][-1]["value"] == pytest.approx(1)
    score = model["depth"]["score"]["value"]
    assert score is None or score == 1  # it is its own ignorant model
    assert read_result(out) == json.loads((out / RESULT).read_text()) == result
    assert result["inputs"]["model"] and result["environment"]["packages"]["scikit-learn"]


def test_the_same_question_is_not_measured_twice(
    found: tuple[Path, Any],
    toy_model: str,
    toy_data: str,
    defended: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, result = found
    monkeypatch.setattr("titer.mechanism.examine._Room", None)
    question = asked(toy_model, toy_data, attacked=(toy_model,), ignorant=defended)
    assert examine(defended, question, output_dir=out) == result


def test_the_page_shows_every_measure_with_its_table_and_loads_nothing(
    found: tuple[Path, Any],
) -> None:
    page = (found[0] / PAGE).read_text()
    for title in (
        "Drift of the layers",
        "Lens:",
        "Loss by patching",
        "Probe, cross",
        "CKA",
        "Principal",
        "put back",
    ):
        assert title in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert page.count("<figure>") == page.count("Numbers of this figure</summary>")
    assert not re.search(r"[ ,\">]nan[ ,\"<]", page) and len(page) < 1_000_000


def test_names_on_the_page_are_escaped(found: tuple[Path, Any]) -> None:
    assert "<b>" not in render({**found[1], "model": "<b>bold</b>"})


def test_a_model_that_is_its_own_reference_has_not_changed(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    result = examine(toy_model, asked(toy_model, toy_data), output_dir=tmp_path)
    said = "\n".join(sentences(result))
    assert "no layer differs" in said
    model = result["subjects"][-1]
    assert [e["value"] for e in model["depth"]["drop"]] == [0, 0]
    assert model["depth"]["score"] is None


def test_the_command_prints_what_it_found(
    tmp_path: Path,
    say: Callable[..., tuple[Any, str, str]],
    toy_model: str,
    toy_data: str,
    defended: str,
) -> None:
    flags = ("--n", 8, "--seeds", 0, "--forced", 0, "--output_dir", tmp_path)
    code, out, err = say(
        "mechanism",
        "--model",
        defended,
        "--reference",
        toy_model,
        "--dataset",
        toy_data,
        *flags,
    )
    assert (code, err) == (0, "")
    assert "bit-identical layers: 0" in out and str(tmp_path / PAGE) in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--reference", "organism/aligned"), "compare models of one architecture"),
        (("--reference", "/nowhere/at/all"), "no such folder"),
        (("--reference", "organism/alined"), "did you mean"),
        (("--n", 1), "n must be 5 or more"),
        (("--seeds", 0, 0), "one twice"),
        (("--load_in_4bit",), "leave out"),
        (("--opening", 0), "opening must be 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    flags: tuple[object, ...],
    words: str,
    tmp_path: Path,
    say: Callable[..., tuple[Any, str, str]],
    toy_model: str,
    toy_data: str,
) -> None:
    given = () if "--reference" in flags else ("--reference", toy_model)
    code, _, err = say(
        "mechanism",
        "--model",
        toy_model,
        *given,
        *flags,
        "--dataset",
        toy_data,
        "--output_dir",
        tmp_path,
    )
    assert code == 2
    assert words in err and err.count("\n") == 1


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(TiterError, match="not what `titer mechanism` writes"):
        read_result(tmp_path)


def test_it_is_a_public_name() -> None:
    assert titer.examine is examine and titer.Mechanism is Mechanism
