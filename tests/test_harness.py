"""One run, start to finish: same spec same bytes, nothing redone, and no trace of one run in the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from titer.conditions.flags import raise_flags
from titer.data.roles import assign
from titer.runs import loaded as loaded_module
from titer.runs.execute import execute
from titer.runs.inputs import identify
from titer.runs.store import MODEL, Store
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.files import COMPLETIONS, CURVE, RECORD
from titer.schema.specs import AttackRun, ImmunizeRun, Named, ProbeSet, Selection, TrainArgs
from titer.schema.types import Budget, to_json

Attack = Callable[..., AttackRun]
FULL = Named("sft", {"learning_rate": 1e-2, "per_device_train_batch_size": 4})
LORA = Named("lora", {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "lora_r": 4})


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """As if nothing had run in this process yet."""
    loaded_module.loaded.cache_clear()


@pytest.fixture
def attack(toy_model: str, toy_data: str) -> Attack:
    plan = assign(Data(toy_data))

    def build(**changes: Any) -> AttackRun:
        probes = (
            ProbeSet("harm", plan.harm("unseen", 3), max_new_tokens=4),
            ProbeSet("utility", plan.utility(3), max_new_tokens=4),
        )
        run = AttackRun(toy_model, FULL, plan.attack("unseen", 6, 0), probes, Budget(steps=3), plan=(0, 2))
        return replace(run, **changes)

    return build


@pytest.fixture
def immunize(toy_model: str, toy_data: str) -> Callable[..., ImmunizeRun]:
    plan = assign(Data(toy_data))

    def build(**changes: Any) -> ImmunizeRun:
        train = TrainArgs(learning_rate=1e-2, max_steps=3, per_device_train_batch_size=4)
        run = ImmunizeRun(toy_model, Named("gradient-ascent"), plan.defence(), plan.retain(), train)
        return replace(run, **changes)

    return build


def outcome(root: Path, run: AttackRun) -> tuple[bytes, bytes]:
    """The bytes a run left, but for the seconds it took."""
    folder = Store(root).folder(execute(run, root).id)
    rows = [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]
    for row in rows:
        row["spend"]["device_seconds"] = 0
    return json.dumps(rows).encode(), (folder / COMPLETIONS).read_bytes()


def test_a_finished_run_is_a_whole_folder(attack: Attack, tmp_path: Path) -> None:
    record = execute(attack(), tmp_path)
    folder = tmp_path / "runs" / record.id
    assert {p.name for p in folder.iterdir()} == {RECORD, CURVE, COMPLETIONS}
    assert (record.status, record.seed, record.spend.steps) == ("finished", 0, 3)
    assert record.result["config"] == "sft(learning_rate=0.01, per_device_train_batch_size=4)"
    assert set(record.data_hashes) == {"data", "probe:harm", "probe:utility"}
    curve = Store(tmp_path).curve(record.id)
    assert [p.step for p in curve.points] == [0, 2, 3]
    assert {len(p.scores["harm"]) for p in curve.points} == {3}
    assert len(Store(tmp_path).completions(record.id)) == 3 * 6
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [record.id]


def test_the_same_spec_gives_the_same_bytes(attack: Attack, tmp_path: Path) -> None:
    first = outcome(tmp_path / "a", attack())
    loaded_module.loaded.cache_clear()
    torch.rand(5)
    assert outcome(tmp_path / "b", attack()) == first
    assert outcome(tmp_path / "c", attack(seed=1)) != first


@pytest.mark.parametrize("before", [[FULL], [LORA], [LORA, LORA]], ids=["full", "lora", "lora-twice"])
@pytest.mark.parametrize("after", [FULL, LORA], ids=["then-full", "then-lora"])
def test_a_run_leaves_no_trace_in_the_next(attack: Attack, tmp_path: Path, before: list[Named], after: Named) -> None:
    fresh = outcome(tmp_path / "fresh", attack(attack=after, seed=5))
    loaded_module.loaded.cache_clear()
    for seed, named in enumerate(before):
        execute(attack(attack=named, seed=seed), tmp_path)
    assert loaded_module.loaded.cache_info().currsize == 1
    assert outcome(tmp_path, attack(attack=after, seed=5)) == fresh
    assert loaded_module.loaded.cache_info().misses == 1


def test_options_that_change_the_model_leave_no_trace_either(attack: Attack, tmp_path: Path) -> None:
    fresh = outcome(tmp_path / "fresh", attack(seed=5))
    checkpointing = Named("sft", {"gradient_checkpointing": True, "learning_rate": 1e-2, "bf16": True})
    execute(attack(attack=checkpointing), tmp_path)
    assert outcome(tmp_path, attack(seed=5)) == fresh


def test_a_crash_under_an_adapter_leaves_no_trace(attack: Attack, immunize: Any, tmp_path: Path) -> None:
    fresh = outcome(tmp_path / "fresh", attack())

    def crash(step: int) -> None:
        raise RuntimeError("pulled the plug")

    lora = TrainArgs(max_steps=3, per_device_train_batch_size=4, lora_r=2)
    for run in (attack(attack=LORA), immunize(train=lora)):
        with pytest.raises(RuntimeError, match="pulled the plug"):
            execute(run, tmp_path, progress=crash)
        assert Store(tmp_path).record(identify(run)) is None
    assert list((tmp_path / "runs").iterdir()) == []
    assert outcome(tmp_path, attack()) == fresh


def test_a_finished_run_is_not_done_again_unless_asked(attack: Attack, tmp_path: Path) -> None:
    name = execute(attack(), tmp_path).id
    files = {p: p.stat().st_mtime_ns for p in Store(tmp_path).folder(name).iterdir()}
    execute(attack(), tmp_path, progress=lambda step: pytest.fail("it ran"))
    assert files == {p: p.stat().st_mtime_ns for p in Store(tmp_path).folder(name).iterdir()}
    execute(attack(), tmp_path, overwrite=True)
    assert all(p.stat().st_mtime_ns > then for p, then in files.items())


def test_a_damaged_record_is_redone(attack: Attack, tmp_path: Path) -> None:
    first = outcome(tmp_path, attack())
    name = identify(attack())
    (Store(tmp_path).folder(name) / RECORD).write_text('{"id":')
    assert Store(tmp_path).record(name) is None
    assert outcome(tmp_path, attack()) == first
    assert Store(tmp_path).record(name) is not None


def test_a_run_is_known_by_what_is_in_its_model_and_data(
    attack: Attack, toy_model: str, toy_data: str, tmp_path: Path
) -> None:
    import shutil

    elsewhere = shutil.copytree(toy_model, tmp_path / "m")
    assert identify(attack(model=str(elsewhere))) == identify(attack())
    assert identify(attack(model=f"random:{elsewhere}")) != identify(attack())
    copy = tmp_path / "toy.jsonl"
    copy.write_text(Path(toy_data).read_text().replace("with red", "with blue"))
    assert identify(attack(data=Selection(str(copy), "attack", True))) != identify(
        attack(data=Selection(toy_data, "attack", True))
    )


@pytest.mark.parametrize(("name", "option"), [("merge-with-base", "base"), ("warm-start", "reference")])
def test_a_run_is_known_by_what_is_in_the_other_models_its_attack_names(
    name: str, option: str, attack: Attack, toy_model: str, tmp_path: Path
) -> None:
    import shutil

    other = Path(shutil.copytree(toy_model, tmp_path / "m"))
    run = attack(attack=Named(name, {option: str(other)}))
    before = identify(run)
    (other / "config.json").write_text((other / "config.json").read_text().replace("{", '{"changed": true,', 1))
    assert identify(run) != before


def test_fresh_weights_follow_the_seed(attack: Attack, toy_model: str, tmp_path: Path) -> None:
    model = f"random:{toy_model}"
    one = outcome(tmp_path / "a", attack(model=model, seed=1))
    two = outcome(tmp_path / "a", attack(model=model, seed=2))
    assert one != two
    loaded_module.loaded.cache_clear()
    assert outcome(tmp_path / "b", attack(model=model, seed=1)) == one


def test_nothing_but_measuring(attack: Attack, tmp_path: Path) -> None:
    record = execute(attack(attack=Named("none"), budget=Budget(steps=0)), tmp_path)
    assert record.spend.tokens == record.spend.steps == 0
    assert [p.step for p in Store(tmp_path).curve(record.id).points] == [0]


@pytest.mark.parametrize("lora_r", [0, 2])
def test_immunizing_leaves_a_plain_model_that_moved(
    immunize: Any, toy_model: str, tmp_path: Path, lora_r: int
) -> None:
    train = TrainArgs(learning_rate=1e-2, max_steps=3, per_device_train_batch_size=4, lora_r=lora_r)
    record = execute(immunize(train=train), tmp_path)
    made = load_file(Store(tmp_path).folder(record.id) / MODEL / "model.safetensors")
    given = load_file(Path(toy_model) / "model.safetensors")
    assert set(made) == set(given)
    gap = sum(float((made[k] - given[k]).square().sum()) for k in given)
    size = sum(float(v.square().sum()) for v in given.values())
    assert record.result["weight_change"] == pytest.approx((gap / size) ** 0.5, rel=1e-3)
    assert record.result["weight_change"] > 1e-3
    assert record.spend.steps == record.result["steps"] == 3
    assert record.result["passes"] == {"grad": 6, "no_grad": 0}
    logs = [json.loads(s) for s in (Store(tmp_path).folder(record.id) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logs] == [1, 2, 3]
    assert logs[-1] == record.result["last"]


def test_immunizing_twice_gives_the_same_weights(immunize: Any, tmp_path: Path) -> None:
    def weights(root: Path) -> bytes:
        folder = Store(root).folder(execute(immunize(), root).id)
        return (folder / MODEL / "model.safetensors").read_bytes()

    first = weights(tmp_path / "a")
    assert weights(tmp_path / "b") == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defence": Named("repnoize")}, "unknown defence 'repnoize': did you mean repnoise"),
        ({"defence": Named("repnoise", {"ascent_weigth": 1})}, "did you mean ascent_weight"),
        ({"train": TrainArgs(learning_rate=1e38, max_steps=5, optim="sgd", max_grad_norm=0)}, "diverged at step"),
        ({"train": TrainArgs(max_length=4)}, "leaves no room for a response within max_length 4"),
    ],
)
def test_an_immunization_that_cannot_be_leaves_nothing(
    immunize: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TiterError, match=message):
        execute(immunize(**changes), tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_data_a_defence_cannot_use_is_named(immunize: Any, toy_data: str, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="needs a harmful and a harmless response for every prompt, 2 rows lack one"):
        execute(immunize(defence=Named("repnoise"), data=Selection(toy_data, restricted=False, n=2)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": Named("sftt")}, "unknown attack 'sftt': did you mean sft"),
        ({"probes": (ProbeSet("harm", Selection("DATA", n=2), judge="exakt"),)}, "unknown judge 'exakt'"),
        ({"probes": (ProbeSet("harm", Selection("DATA", n=2), max_new_tokens=99),)}, "exceed the context of 64"),
        ({"model": "/none/at/all"}, "/none/at/all: no such folder"),
    ],
)
def test_an_attack_that_cannot_be_leaves_nothing(
    attack: Attack, toy_data: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "probes" in changes:
        (probe,) = changes["probes"]
        changes = {"probes": (replace(probe, selection=replace(probe.selection, dataset=toy_data)),)}
    with pytest.raises(TiterError, match=message):
        execute(attack(**changes), tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_methods_that_rewrite_data_or_edit_weights_are_not_mistaken_for_plain_training(
    immunize: Any, tmp_path: Path
) -> None:
    train = TrainArgs(learning_rate=1e-4, max_steps=2, per_device_train_batch_size=4)
    plain, data, weights = (
        execute(immunize(defence=Named(name), train=train), tmp_path).result["weight_change"]
        for name in ("safety-sft", "sdd", "undo")
    )
    assert plain != data
    assert weights > 5 * plain
    with pytest.raises(TiterError, match="needs the checkpoint before alignment"):
        execute(immunize(defence=Named("lox")), tmp_path)


def test_several_defences_add_up(immunize: Any, tmp_path: Path) -> None:
    named = Named("safety-sft+gradient-ascent", {"gradient-ascent.max_ascent": 3.0})
    record = execute(immunize(defence=named), tmp_path)
    assert {"safety-sft.loss", "gradient-ascent.harmful"} <= set(record.result["last"])


@pytest.mark.parametrize(("rate", "raised"), [(0.0, ["inert"]), (1e-2, [])])
def test_an_immunization_that_changes_nothing_is_flagged(
    immunize: Callable[..., ImmunizeRun], tmp_path: Path, rate: float, raised: list[str]
) -> None:
    train = TrainArgs(learning_rate=rate, max_steps=10, per_device_train_batch_size=4)
    record = execute(immunize(train=train), tmp_path)
    assert record.result["objective"] is not None
    assert [f.code for f in raise_flags([], immunization=to_json(record))] == raised
