"""A run on several processes: what may be asked for, and the same result as on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from titer.runs import verbs as verbs_module
from titer.runs.checks import check_run
from titer.runs.layout import Layout, canonical, layout
from titer.runs.runner import Runner
from titer.schema.errors import TiterError
from titer.schema.evaluation import Attempt, Data, Immunization
from titer.schema.specs import AttackRun, Compute, ImmunizeRun, Named, Selection, TrainArgs
from titer.schema.types import Budget

FILE = """\
distributed_type: FSDP
num_processes: 4
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
"""


SHARED = Compute(accelerate_config="fsdp2:2")


def immunization(**changes: Any) -> ImmunizeRun:
    given = {"model": "m", "defence": Named("repnoise"), "data": Selection("d"), "compute": SHARED}
    return ImmunizeRun(**{**given, **changes})


def test_layouts() -> None:
    assert layout("") is None
    assert layout("fsdp2:1") is None
    assert layout("fsdp2:3") == Layout("fsdp2", 3)
    assert canonical(Compute(accelerate_config="multi_gpu:2")).accelerate_config == "multi_gpu:2"


def test_a_file_of_accelerate_config(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(FILE)
    assert canonical(Compute(accelerate_config=str(path))).accelerate_config == "fsdp2:4"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    assert canonical(Compute(accelerate_config=str(path))).accelerate_config == "multi_gpu:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("fsdp_version: 2", "fsdp_version: 1"), "set fsdp_version to 2"),
        (FILE.replace("'no'", "bf16"), "pass --bf16"),
        (FILE + "num_machines: 2\n", "one machine"),
        ("distributed_type: DEEPSPEED\n", "use FSDP"),
        ("[1]", "not a file of"),
    ],
)
def test_files_that_ask_for_more_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(TiterError, match=message):
        layout(str(path))


@pytest.mark.parametrize("config", ["fsdp", "fsdp2:x", "fsdp2", "nowhere/a.yaml"])
def test_other_words_are_refused(config: str) -> None:
    with pytest.raises(TiterError, match="accelerate_config"):
        layout(config, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defence": Named("vaccine")}, "vaccine works on one process"),
        ({"train": TrainArgs(lora_r=4)}, "leave out lora_r"),
        ({"train": TrainArgs(optim="adafactor")}, "optimiser adafactor"),
        ({"compute": replace(SHARED, load_in_4bit=True)}, "load_in_4bit"),
    ],
)
def test_runs_that_cannot_be_shared_out_are_refused(changes: dict[str, Any], message: str) -> None:
    check_run(immunization())
    if "compute" not in changes:  # that needs an extra
        check_run(immunization(**changes, compute=Compute()))
    with pytest.raises(TiterError, match=message):
        check_run(immunization(**changes))


def test_a_budget_in_seconds_is_refused() -> None:
    run = AttackRun("m", Named("sft"), Selection("d"), (), Budget(device_seconds=1.0), compute=SHARED)
    with pytest.raises(TiterError, match="clocks differ"):
        check_run(run)


def test_it_takes_one_worker(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    with pytest.raises(TiterError, match="--workers 1"):
        verbs_module.attack(
            toy_model,
            Attempt(data=Data(toy_data), compute=SHARED),
            output_dir=tmp_path,
            runner=Runner(tmp_path, workers=2),
        )


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2:2", "multi_gpu:2"])
def test_two_processes_make_the_model_that_one_makes(
    tmp_path: Path, toy_model: str, toy_data: str, config: str
) -> None:
    """float64, so that what differs by more than rounding is seen; batches of 3 rows are not shared out, of 4 are."""
    made = {}
    for name, how in (("one", ""), ("two", config)):
        train = TrainArgs(1e-3, 3, 4, gradient_checkpointing=name == "two")
        record = verbs_module.immunize(
            toy_model,
            Immunization("booster", data=Data(toy_data), train=train, compute=Compute("float64", "cpu", how)),
            output_dir=tmp_path / name,
        )
        made[name] = record, load_file(tmp_path / name / "model.safetensors")
    (one, a), (two, b) = made["one"], made["two"]
    assert two.environment["processes"] == 2 and one.id != two.id
    assert two.result["last"] == pytest.approx(one.result["last"], rel=1e-9)
    assert two.spend.tokens == one.spend.tokens and two.result["passes"] == one.result["passes"]
    assert one.result["weight_change"] > 1e-3
    assert two.result["weight_change"] == pytest.approx(one.result["weight_change"], rel=1e-6)
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=1e-9) for k in a)
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()


@pytest.mark.slow
def test_two_processes_attack_as_one_does(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    found = []
    for how in ("", "fsdp2:2"):
        done = verbs_module.attack(
            toy_model,
            Attempt(
                learning_rate=1e-2,
                data=Data(toy_data),
                seeds=(0,),
                budget=Budget(steps=4),
                n_train=20,
                n_eval=7,
                compute=Compute("float64", "cpu", how),
            ),
            output_dir=tmp_path,
        )
        found.append((done.curves[0].points, done.records[0].spend.tokens))
    (one, tokens), (two, others) = found
    assert [p.step for p in one] == [p.step for p in two] and tokens == others
    assert [p.scores for p in one] == [p.scores for p in two]
    assert [p.loss for p in two[1:]] == pytest.approx([p.loss for p in one[1:]], rel=1e-9)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_one_line(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    with pytest.raises(TiterError) as error:
        verbs_module.immunize(
            toy_model,
            Immunization(
                "booster",
                data=Data(toy_data),
                train=TrainArgs(learning_rate=1e30, max_steps=8),
                compute=SHARED,
            ),
            output_dir=tmp_path,
        )
    assert "diverged" in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "runs").glob("immunize-*"))
