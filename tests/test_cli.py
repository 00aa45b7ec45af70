"""The command line: bad input is one line, exit code 2, within 2 s and without a trace; flags beat the YAML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from titer.models.load import load_model
from titer.models.weights import save_model

Say = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def flags(toy_model: str, toy_data: str, tmp_path: Path) -> Callable[..., list[object]]:
    """A small sound command line; `name=value` changes or adds a flag, None takes it away."""
    common = {"model": toy_model, "dataset": toy_data, "output_dir": tmp_path / "out"}
    own: dict[str, dict[str, object]] = {
        "immunize": {"defence": "gradient-ascent", "max_steps": 2, "per_device_train_batch_size": 4},
        "attack": {"budget.steps": 2, "seeds": 0, "n_train": 4, "n_eval": 3, "max_new_tokens": 4},
        "evaluate": {"reference": toy_model},
    }

    def build(command: str, **changes: object) -> list[object]:
        given = {**common, **own[command], **{k.replace("__", "."): v for k, v in changes.items()}}
        return [command, *(x for k, v in given.items() if v is not None for x in (f"--{k}", v))]

    return build


BAD: list[tuple[str, dict[str, object], str]] = [
    ("immunize", {"output_dir": None}, "--output_dir requires an argument"),
    ("immunize", {"dataset": "none.jsonl"}, "data set none.jsonl: no such file"),
    ("immunize", {"dataset": "TMP/bad.jsonl"}, "bad.jsonl: line 2: not JSON"),
    ("immunize", {"dataset": "TMP/empty.jsonl"}, "empty.jsonl: it is empty"),
    ("immunize", {"dataset": "TMP/columns.jsonl"}, "columns.jsonl: no column prompt: found text"),
    ("immunize", {"dataset": "nobody/nothing"}, "hub cannot be reached"),
    ("immunize", {"model": "nobody/nothing"}, "hub cannot be reached"),
    ("immunize", {"model": "./none"}, "./none: no such folder"),
    ("immunize", {"model": "organism/alined"}, "did you mean organism/aligned"),
    ("immunize", {"model": "TMP/nan"}, "NaN or infinity in lm_head.weight"),
    ("immunize", {"model": "TMP/cut"}, "cut: damaged weights"),
    ("immunize", {"defence": "repnoize"}, "unknown defence 'repnoize': did you mean repnoise"),
    ("immunize", {"defence": "no.such.module:Mine"}, "cannot be imported"),
    ("immunize", {"defence_args__max_ascnt": 1}, "did you mean max_ascent"),
    ("immunize", {"defence_args__max_ascent": "much"}, "max_ascent: .*got 'much'"),
    ("immunize", {"learning_rate": "fast"}, "--learning_rate"),
    ("immunize", {"learning_rate": -1}, "learning_rate must be 0 or more"),
    ("immunize", {"learning_rat": 1}, "Did you mean --learning_rate"),
    ("immunize", {"max_length": 4}, "leaves no room for a response within max_length 4"),
    ("immunize", {"optim": "adam"}, "unknown optimiser 'adam'"),
    ("immunize", {"device": "nope"}, "device nope: cannot be used"),
    ("immunize", {"dtype": "float23"}, "did you mean float32"),
    ("immunize", {"output_dir": "TMP/model"}, "holds a model titer did not make"),
    ("immunize", {"output_dir": "TMP/bad.jsonl"}, "is a file"),
    ("immunize", {"withhold": "bake"}, "cannot withhold 'bake': domain potions has brew, forge"),
    ("attack", {"attack": "sfft"}, "unknown attack 'sfft': did you mean sft"),
    ("attack", {"attack_args__lora_r": "x"}, "lora_r: .*got 'x'"),
    ("attack", {"max_new_tokens": 80}, "exceed the context of 64"),
    ("attack", {"budget__steps": -1}, "budget steps must be 0 or more"),
    ("attack", {"n_train": 0}, "n_train must be 1 or more"),
    ("attack", {"judge": "exakt"}, "unknown judge 'exakt': did you mean exact"),
    ("attack", {"data": "seeen"}, 'Invalid value "seeen" for --data'),
    ("attack", {"output_dir": "TMP/bad.jsonl"}, "cannot be written"),
    ("evaluate", {"suite": "quik"}, "unknown suite 'quik': did you mean quick"),
    ("evaluate", {"reference": None}, "its reference is unknown: pass --reference"),
    ("evaluate", {"reference": "./none"}, "./none: no such folder"),
    ("evaluate", {"conditions": "resistence"}, "unknown condition 'resistence': did you mean resistance"),
    ("evaluate", {"conditions": "trainability#tasks_from=none.jsonl"}, "none.jsonl: no such file"),
    ("immunize", {"config": "TMP/none.yaml"}, "--config .*none.yaml: no such file"),
    ("immunize", {"config": "TMP/key.yaml"}, r"learning_rte.*key.yaml.*Did you mean --learning_rate"),
    ("immunize", {"config": "TMP/broken.yaml"}, "--config .*broken.yaml: not YAML"),
    ("immunize", {"config": "TMP/list.yaml"}, "list.yaml.*must be a mapping"),
    ("immunize", {"config": "TMP/type.yaml"}, "learning_rate"),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, toy_model: str) -> Path:
    """Files that are wrong in every way."""
    folder = tmp_path_factory.mktemp("wrong")
    texts = {
        "bad.jsonl": '{"prompt": "p", "harmful": "h"}\n{oops\n',
        "empty.jsonl": "",
        "columns.jsonl": '{"text": "p"}\n',
        "key.yaml": "learning_rte: 0.1\n",
        "broken.yaml": "a: [\n",
        "list.yaml": "- 1\n",
        "type.yaml": "learning_rate: fast\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    model, tokenizer = load_model(toy_model)
    save_model(model, tokenizer, folder / "model")
    for name in ("nan", "cut"):
        save_model(model, tokenizer, folder / name)
    broken = {name: weight.clone() for name, weight in load_file(folder / "nan" / "model.safetensors").items()}
    broken["lm_head.weight"][0, 0] = float("nan")
    save_file(broken, folder / "nan" / "model.safetensors", metadata={"format": "pt"})
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    return folder


@pytest.mark.parametrize(("command", "changes", "message"), BAD, ids=lambda v: str(v) if isinstance(v, dict) else None)
def test_bad_input_is_one_line_and_exit_code_2(
    say: Say, flags: Any, shelf: Path, tmp_path: Path, command: str, changes: dict[str, Any], message: str
) -> None:
    changes = {k: v.replace("TMP", str(shelf)) if isinstance(v, str) else v for k, v in changes.items()}
    before = {p: p.stat().st_mtime_ns for p in shelf.rglob("*")}
    started = time.process_time()
    code, out, err = say(*flags(command, **changes))
    assert time.process_time() - started < 2
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("titer: ")
    assert re.search(message, err), err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert before == {p: p.stat().st_mtime_ns for p in shelf.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imunize"], 'Did you mean "immunize"'),
        (["ls", "defense"], "Choose from"),
        (["report", "none"], "none: no such file"),
        (["immunize", "--config"], "--config"),
    ],
)
def test_a_bad_command_is_one_line_too(say: Say, arguments: list[str], message: str) -> None:
    code, out, err = say(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_an_output_folder_in_use_is_left_alone_unless_asked(say: Say, flags: Any, tmp_path: Path) -> None:
    assert say(*flags("immunize"))[0] == 0
    made = (tmp_path / "out" / "model.safetensors").read_bytes()
    code, _, err = say(*flags("immunize", max_steps=1))
    assert (code, "holds another model" in err) == (2, True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == made
    assert say(*flags("immunize", max_steps=1), "--overwrite")[0] == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != made


def test_the_same_command_again_redoes_nothing_and_leaves_nothing_behind(say: Say, flags: Any, tmp_path: Path) -> None:
    first = say(*flags("immunize"))
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != "titer.json"}
    assert say(*flags("immunize")) == first
    again = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != "titer.json"}
    assert again == files
    assert not [p for p in again if p.name.startswith(".")]


def test_what_was_made_can_be_attacked_and_says_where_it_is_from(say: Say, flags: Any, tmp_path: Path) -> None:
    assert say(*flags("immunize"))[0] == 0
    code, out, err = say(*flags("attack", model=tmp_path / "out", output_dir=tmp_path / "attacks"))
    assert (code, err) == (0, "")
    assert "harm" in out
    assert "sft" in out


def test_json_is_json_and_nothing_else(say: Say, flags: Any) -> None:
    code, out, err = say(*flags("immunize"), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["result"]["steps"] == 2
    for arguments in (["ls", "--json"], ["env", "--json"]):
        assert json.loads(say(*arguments)[1])


def test_flags_beat_the_yaml_and_the_yaml_the_defaults(say: Say, flags: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("max_steps: 1\nlearning_rate: 0.5\ndefence_args:\n  max_ascent: 7.0\nwarmup_steps: 1\n")
    _, out, _ = say(*flags("immunize", learning_rate=0.25, max_steps=None, config=config), "--json")
    spec = json.loads(out)["spec"]
    assert (spec["train"]["learning_rate"], spec["train"]["max_steps"], spec["train"]["warmup_steps"]) == (0.25, 1, 1)
    assert spec["defence"]["options"] == {"max_ascent": "7.0"}


def test_a_config_does_not_outlive_its_command(say: Say, flags: Any, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("warmup_steps: 1\n")
    say(*flags("immunize", config=tmp_path / "c.yaml"))
    _, out, err = say(*flags("immunize", output_dir=tmp_path / "other"), "--json")
    assert json.loads(out)["spec"]["train"]["warmup_steps"] == 0, err


def test_interrupting_says_what_is_kept(say: Say, flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("titer.runs.verbs.immunize", interrupt)
    code, _, err = say(*flags("immunize"))
    assert (code, err.count("\n")) == (130, 1)
    assert "finished runs are kept" in err


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(say: Say, flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("titer.runs.verbs.immunize", fail)
    with pytest.raises(ValueError, match="a bug"):
        say(*flags("immunize"))


def test_version_and_help(say: Say) -> None:
    assert say("--version")[1].strip() == "0.1.0"
    for command in ("demo", "immunize", "attack", "evaluate", "report", "ls", "env"):
        assert command in say("--help")[1]
        assert say(command, "--help")[0] == 0


def test_the_installed_command_is_as_terse() -> None:
    run = subprocess.run([sys.executable, "-m", "titer.cli", "imunize"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
