"""The callback in other people's trainers: what it writes, what it leaves alone, when it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from titer.attacks.sft_hf import _Collator
from titer.data.load import load
from titer.data.tokens import encode_all
from titer.integrations.transformers import TiterCallback, Watched
from titer.runs.store import Store
from titer.schema.breach import Breach
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.specs import Template

STEPS = 4


class Heard(TrainerCallback):
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 3e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False, **changes,
    }  # fmt: skip


@pytest.fixture
def trainer(build_model: Callable[..., Any], tokenizer: Any, toy_data: str, tmp_path: Path) -> Callable[..., Trainer]:
    """A plain Trainer that fine-tunes the toy model on the restricted rows."""

    def make(**changes: Any) -> Trainer:
        rows = encode_all(tokenizer, [e for e in load(toy_data).examples if e.restricted], "harmful", Template(), 64)
        return Trainer(
            model=build_model(),
            args=TrainingArguments(**settings(tmp_path / "trainer", **changes)),
            train_dataset=rows,
            data_collator=_Collator(tokenizer.pad_token_id),
            processing_class=tokenizer,
        )

    return make


def watched(toy_data: str, **changes: Any) -> Watched:
    return Watched(Data(toy_data), n_eval=4, **{"probe_steps": (0, 2), **changes})


def test_a_fine_tune_leaves_a_run_that_the_store_reads(
    trainer: Callable[..., Trainer], toy_data: str, tmp_path: Path
) -> None:
    one, heard = trainer(), Heard()
    callback = TiterCallback(one, tmp_path / "out", watched(toy_data), model="mine")
    one.add_callback(callback)
    one.add_callback(heard)
    one.train()
    assert callback.record is not None
    store = Store(tmp_path / "out")
    record = store.record(callback.record.id)
    assert record is not None and record.spec["model"] == "mine"
    assert record.spend.steps == STEPS and record.spend.examples == 8 * STEPS and record.spend.flops > 0
    curve = store.curve(record.id)
    assert [p.step for p in curve.points] == [0, 2, STEPS] and curve.attack == "trainer"
    assert curve.points[0].loss is None and curve.points[1].loss is not None
    assert {c.probe for c in store.completions(record.id)} == {"harm", "utility"}
    told = [entry for entry in one.state.log_history if "titer/harm" in entry]
    assert [entry["step"] for entry in told] == [0, 2, STEPS]
    assert sum("titer/harm" in logs for logs in heard.logs) == 3
    assert [entry["step"] for entry in one.state.log_history if "loss" in entry] == [1, 2, 3, STEPS]


def test_the_fine_tune_ends_with_the_weights_it_would_have_had(
    trainer: Callable[..., Trainer], toy_data: str, tmp_path: Path
) -> None:
    alone, seen = trainer(), trainer()
    seen.add_callback(TiterCallback(seen, tmp_path / "out", watched(toy_data)))
    alone.train()
    seen.train()
    theirs = alone.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in seen.model.state_dict().items())


def test_it_stops_at_a_breach_only_if_asked(trainer: Callable[..., Trainer], toy_data: str, tmp_path: Path) -> None:
    easy = Breach(phi=1e-9, utility_drop=1.0, incoherent=1.0)
    for stop, end in ((False, STEPS), (True, 2)):
        one = trainer()
        callback = TiterCallback(one, tmp_path / "out", watched(toy_data, breach=easy, stop_at_breach=stop))
        one.add_callback(callback)
        _breaks_at(callback, 2)
        one.train()
        assert callback.curve is not None and callback.curve.points[-1].step == end
        assert callback.curve.end == ("breached" if stop else "finished")


def _breaks_at(callback: TiterCallback, step: int) -> None:
    """Have the model answer harmfully from a step on."""
    begin = callback.on_train_begin

    def began(*args: Any, **kwargs: Any) -> Any:
        import titer.integrations.transformers as place

        class Made:
            def __init__(self, *_: Any) -> None: ...

            def __call__(self, model: Any, now: int, *_: Any) -> Any:
                return {"harm": (float(now >= step),), "utility": (1.0,)}, {}, []

        kept, place.Prober = place.Prober, Made  # type: ignore[misc,assignment]
        try:
            return begin(*args, **kwargs)
        finally:
            place.Prober = kept  # type: ignore[misc]

    callback.on_train_begin = began  # type: ignore[method-assign]


def test_what_cannot_be_watched_is_an_error_of_one_line(
    trainer: Callable[..., Trainer], toy_data: str, tmp_path: Path
) -> None:
    one = trainer()
    one.processing_class = None
    with pytest.raises(TiterError, match="processing_class"):
        TiterCallback(one, tmp_path / "out", watched(toy_data))
    again = trainer()
    callback = TiterCallback(again, tmp_path / "out", watched(toy_data))
    again.state.global_step = 3
    with pytest.raises(TiterError, match="checkpoint"):
        callback.on_train_begin(again.args, again.state, again.control)


def test_trl_trains_as_it_would_and_is_watched(
    build_model: Callable[..., Any], tokenizer: Any, toy_data: str, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = [{"prompt": e.prompt + " ", "completion": e.harmful} for e in load(toy_data).examples if e.restricted]

    def make() -> Any:
        args = trl.SFTConfig(**settings(tmp_path / "trainer", max_length=64, bf16=False))
        data = Dataset.from_list(rows)
        return trl.SFTTrainer(build_model(), args=args, train_dataset=data, processing_class=tokenizer)

    alone, seen = make(), make()
    callback = TiterCallback(seen, tmp_path / "out", watched(toy_data))
    seen.add_callback(callback)
    alone.train()
    seen.train()
    assert callback.curve is not None and [p.step for p in callback.curve.points] == [0, 2, STEPS]
    keys = [{k for k in entry if not k.startswith("titer/")} for entry in alone.state.log_history]
    assert [set(e) for e in seen.state.log_history if "titer/harm" not in e] == keys
    theirs = alone.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in seen.model.state_dict().items())
    assert json.loads((tmp_path / "out/runs" / callback.curve.record / "record.json").read_text())["id"]
