"""A training that was killed goes on from its checkpoint and ends with the bits it would have had."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from titer.data.batches import collate, order
from titer.data.tokens import encode_all
from titer.runs.execute import execute
from titer.runs.locks import Claims
from titer.runs.probe import Prober
from titer.runs.store import MODEL, Store
from titer.schema.errors import TiterError
from titer.schema.files import read_json, write_json
from titer.schema.specs import AttackRun, ImmunizeRun, Named, ProbeSet, Selection, TrainArgs
from titer.schema.types import Batch, Budget, Spend
from titer.training.checkpoint import STATE, Checkpoint
from titer.training.loop import train
from titer.training.lora import with_lora
from titer.training.losses import sft_rule
from titer.training.meter import Meter
from titer.training.optim import OPTIMIZERS

ARGS = TrainArgs(learning_rate=1e-2, max_steps=6, per_device_train_batch_size=4)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def batches(tokenizer: Any, examples: list[Any]) -> Callable[[], Iterator[Batch]]:
    rows = encode_all(tokenizer, examples[:20], "answer")

    def stream() -> Iterator[Batch]:
        for picked in order(len(rows), 4, seed=7):
            yield collate([rows[i] for i in picked], tokenizer.pad_token_id)

    return stream


def noisy_rule(model: Any, batch: Batch) -> Mapping[str, float]:
    """SFT with noise on the gradients, drawn from torch's generator, so that its state matters too."""
    logs = sft_rule(model, batch)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.add_(torch.randn_like(p.grad), alpha=1e-3)
    return logs


def trained(
    make: Callable[[], Any], stream: Iterator[Batch], args: TrainArgs, saved: Checkpoint | None = None, die: int = 0
) -> tuple[dict[str, torch.Tensor], list[Any], Spend]:
    """Train a fresh model, to be killed right after step `die` (0: not); its weights, logs and spend."""
    model, meter, logs = with_lora(make(), args, seed=1), Meter(), []

    def on_step(step: int, values: Mapping[str, float]) -> bool:
        if die and step == die:
            raise Killed
        logs.append((step, dict(values)))
        return False

    train(model, noisy_rule, stream, args, meter=meter, on_step=on_step, seed=3, checkpoint=saved)
    return model.state_dict(), logs, replace(meter.spend, device_seconds=0.0)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


CASES = {name: replace(ARGS, optim=name) for name in OPTIMIZERS} | {
    "lora": replace(ARGS, lora_r=2),
    "cosine": replace(ARGS, lr_scheduler_type="cosine", warmup_steps=2),
    "accumulation": replace(ARGS, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_training_ends_with_the_same_bits(tmp_path: Path, batches: Any, build_model: Any, case: str) -> None:
    args = CASES[case]
    expected, logs, spend = trained(build_model, batches(), args)
    saved = Checkpoint(tmp_path / "here", every=2, seconds=0)
    with pytest.raises(Killed):
        trained(build_model, batches(), args, saved, die=6)
    assert read_json(tmp_path / "here" / STATE)["step"] == 4
    assert len(list((tmp_path / "here").iterdir())) == 2
    weights, again, spent = trained(build_model, batches(), args, saved)
    assert spent == spend
    if case == "muon":  # its matrix products in bfloat16 tell apart how memory lies
        assert all(torch.allclose(weights[k], v, atol=1e-4) for k, v in expected.items())
    else:
        assert same(weights, expected) and again == logs


@pytest.mark.parametrize("file", [STATE, "step-4.safetensors"])
def test_a_cut_off_checkpoint_starts_over(tmp_path: Path, batches: Any, build_model: Any, file: str) -> None:
    expected, logs, _ = trained(build_model, batches(), ARGS)
    saved = Checkpoint(tmp_path, every=2, seconds=0)
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=5)
    os.truncate(tmp_path / file, (tmp_path / file).stat().st_size // 2)
    weights, again, _ = trained(build_model, batches(), ARGS, saved)
    assert same(weights, expected) and again == logs


def cut(state: dict[str, Any], *path: str) -> dict[str, Any]:
    """The state without the field at a path."""
    return {k: cut(v, *path[1:]) if k == path[0] and path[1:] else v for k, v in state.items() if (k,) != path}


SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda s: [s],
    "null": lambda s: None,
    "tensors that are no name": lambda s: {**s, "tensors": 3},
    "no optimizer": lambda s: cut(s, "optimizer"),
    "an optimizer of another shape": lambda s: {**s, "optimizer": {"state": [1], "param_groups": {}}},
    "groups of another optimizer": lambda s: {**s, "optimizer": {**s["optimizer"], "param_groups": []}},
    "a scheduler of another shape": lambda s: {**s, "scheduler": {"lr": 1}},
    "no spend": lambda s: cut(s, "meter", "spend"),
    "spend of another shape": lambda s: {**s, "meter": {**s["meter"], "spend": {"steps": "many"}}},
    "passes of another shape": lambda s: {**s, "meter": {**s["meter"], "passes": [1]}},
    "logs of another shape": lambda s: {**s, "logs": [1]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_of_another_shape_starts_over(tmp_path: Path, batches: Any, build_model: Any, shape: str) -> None:
    expected, logs, spend = trained(build_model, batches(), ARGS)
    saved = Checkpoint(tmp_path, every=2, seconds=0)
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=5)
    write_json(tmp_path / STATE, SHAPES[shape](read_json(tmp_path / STATE)))
    weights, again, spent = trained(build_model, batches(), ARGS, saved)
    assert same(weights, expected) and again == logs and spent == spend


def test_a_checkpoint_of_another_model_starts_over(tmp_path: Path, batches: Any, build_model: Any) -> None:
    saved = Checkpoint(tmp_path, every=2, seconds=0)
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=5)
    file = next(tmp_path.glob("*.safetensors"))
    tensors = load_file(file)
    for changed in ({k: v.flatten()[:1].clone() for k, v in tensors.items()}, {"other": torch.zeros(1)}):
        save_file(changed, file)
        assert trained(build_model, batches(), ARGS, saved)[1] == trained(build_model, batches(), ARGS)[1]
        shutil.rmtree(tmp_path)
        with pytest.raises(Killed):
            trained(build_model, batches(), ARGS, saved, die=5)


@pytest.mark.parametrize("more", [3, [1], {"points": 3}, {"points": [{"step": "x"}]}, {"completions": [None]}])
def test_points_of_another_shape_in_a_checkpoint_count_as_none(
    tmp_path: Path, batches: Any, build_model: Any, more: Any
) -> None:
    saved = Checkpoint(tmp_path, every=2, seconds=0, more=lambda: more)
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=3)
    assert saved.kept() is None


def test_a_training_that_was_taken_over_neither_saves_nor_removes_a_checkpoint(
    tmp_path: Path, batches: Any, build_model: Any
) -> None:
    claims = Claims(tmp_path)
    claims.claim("r")
    saved = Checkpoint(tmp_path / "kept", every=2, seconds=0, ours=claims.fence("r").holds)
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=3)
    before = {p.name: p.read_bytes() for p in saved.folder.iterdir()}
    (claims.folder / "r.1").write_text('{"host": "elsewhere", "pid": 1, "started": 1, "token": "theirs"}')
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=6)
    saved.clear()
    assert {p.name: p.read_bytes() for p in saved.folder.iterdir()} == before


def test_a_full_disk_leaves_the_checkpoint_before_and_is_one_line(
    tmp_path: Path, batches: Any, build_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Checkpoint(tmp_path, every=2, seconds=0)
    with pytest.raises(Killed):
        trained(build_model, batches(), ARGS, saved, die=3)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(tensors: Any, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(TiterError, match=r"step-4.safetensors: cannot be written: No space left on device"):
        trained(build_model, batches(), ARGS, saved)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_checkpoint_is_not_due_before_its_time(tmp_path: Path) -> None:
    assert not Checkpoint(tmp_path, seconds=60).due(4)
    assert [step for step in range(1, 7) if Checkpoint(tmp_path, every=3, seconds=0).due(step)] == [3, 6]


SCRIPT = """
import json, sys
from titer.runs.execute import execute
from titer.schema.specs import ImmunizeRun
from titer.schema.types import from_json
execute(from_json(ImmunizeRun, json.loads(sys.argv[1])), sys.argv[2], save_seconds=0)
"""


def test_an_immunization_killed_with_9_ends_with_the_same_weights(
    tmp_path: Path, toy_model: str, toy_data: str
) -> None:
    import json

    from titer.schema.types import to_json

    run = ImmunizeRun(
        toy_model,
        Named("repnoise"),
        Selection(toy_data, "defence", True),
        Selection(toy_data, "defence", False),
        TrainArgs(learning_rate=1e-3, max_steps=60, per_device_train_batch_size=4),
    )
    whole = execute(run, tmp_path / "whole")
    saved = tmp_path / "killed" / "runs" / ".checkpoints" / whole.id / STATE
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(to_json(run)), str(tmp_path / "killed")])
    while not saved.is_file():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert Store(tmp_path / "killed").record(whole.id) is None
    assert 0 < read_json(saved)["step"] < 60
    resumed = execute(run, tmp_path / "killed")
    for name in (f"{MODEL}/model.safetensors", "log.jsonl"):
        ours, theirs = (Store(tmp_path / d).folder(whole.id) / name for d in ("killed", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert resumed.result == whole.result
    assert not saved.parent.exists()


# --------------------------------------------------------------------------------------------------------- attacks


def attack_run(model: str, data: str, attack: str) -> AttackRun:
    probes = tuple(
        ProbeSet(n, Selection(data, restricted=n == "harm", n=4), max_new_tokens=4) for n in ("harm", "utility")
    )
    return AttackRun(
        model,
        Named(attack, {"learning_rate": 1e-2, "per_device_train_batch_size": 4}),
        Selection(data, "attack", True),
        probes,
        Budget(steps=8),
        retain=Selection(data, "attack", False),
        plan=(0, 1, 3, 5, 8),
    )


def curve(root: Path, run_id: str) -> list[Any]:
    return [replace(p, spend=replace(p.spend, device_seconds=0.0)) for p in Store(root).curve(run_id).points]


@pytest.mark.parametrize(("attack", "die", "probed"), [("sft", 7, [8]), ("lora", 4, [5, 8])])
def test_an_attack_goes_on_from_where_it_was_killed_with_the_points_it_had(
    tmp_path: Path,
    toy_model: str,
    toy_data: str,
    monkeypatch: pytest.MonkeyPatch,
    attack: str,
    die: int,
    probed: list[int],
) -> None:
    run = attack_run(toy_model, toy_data, attack)
    whole = execute(run, tmp_path / "whole")

    def kill(step: int) -> None:
        if step == die:
            raise Killed

    with pytest.raises(Killed):
        execute(run, tmp_path / "killed", progress=kill, save_seconds=0)
    saved = tmp_path / "killed" / "runs" / ".checkpoints" / whole.id
    assert read_json(saved / STATE)["step"] == die - 1
    steps, grade = [], Prober.__call__

    def counted(self: Prober, model: Any, step: int, *how: Any) -> Any:
        steps.append(step)
        return grade(self, model, step, *how)

    monkeypatch.setattr(Prober, "__call__", counted)
    resumed = execute(run, tmp_path / "killed")
    assert steps == probed and resumed.result == whole.result
    assert curve(tmp_path / "killed", whole.id) == curve(tmp_path / "whole", whole.id)
    said = [Store(tmp_path / d).completions(whole.id) for d in ("killed", "whole")]
    assert said[0] == said[1] and not saved.exists()


def test_an_attack_of_several_parts_begins_anew(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    run = attack_run(toy_model, toy_data, "benign-then-harmful")
    run = replace(run, attack=Named("benign-then-harmful", {"benign_steps": 3}))
    whole = execute(run, tmp_path / "whole")

    def kill(step: int) -> None:
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        execute(run, tmp_path / "killed", progress=kill, save_seconds=0)
    assert not (tmp_path / "killed" / "runs" / ".checkpoints").exists()
    execute(run, tmp_path / "killed")
    assert curve(tmp_path / "killed", whole.id) == curve(tmp_path / "whole", whole.id)
