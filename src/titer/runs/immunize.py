"""One immunization, from its spec to the defended model, and what its objective did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from titer.data.batches import pairs
from titer.data.roles import digest
from titer.data.select import select
from titer.defences import configure
from titer.defences.base import Defence, Prepares, Transforms
from titer.models.adapters import merged
from titer.models.load import load_model, readable
from titer.models.shards import whole
from titer.models.weights import Snapshot, save_model, snapshot
from titer.runs.inputs import inputs
from titer.runs.loaded import loaded, model_of, placed_model
from titer.runs.store import MODEL, Finished, Progress
from titer.schema.errors import TiterError
from titer.schema.files import write_lines
from titer.schema.specs import ImmunizeRun
from titer.schema.types import Example, describe
from titer.training.checkpoint import Checkpoint
from titer.training.loop import train
from titer.training.lora import with_lora, without_adapter
from titer.training.meter import Meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_immunization(run: ImmunizeRun, progress: Progress, folder: Path, saved: Checkpoint) -> Finished:
    """Train the defence into the model and save it."""
    defence = configure(run.defence.name, run.defence.options)
    seen, examples, retain = _examples(run, defence)
    model, tokenizer = model_of(run, inputs(run)["model"])
    reference = placed_model(run.model, run.compute)[0] if "reference" in defence.needs else None
    before, logs = snapshot(model), []
    meter = Meter(also=() if reference is None else (reference,))
    edited = _edited(model, run, defence)

    def on_step(step: int, values: Mapping[str, float]) -> bool:
        logs.append({"step": step, **values})
        progress(step)
        return False

    items = pairs(
        examples,
        retain,
        tokenizer,
        run.train,
        extra=defence.inner_batches,
        held_out="held-out" in defence.needs,
        reference=reference,
        seed=run.seed,
        device=run.compute.device,
    )
    trained = with_lora(model, run.train, seed=run.seed)
    steps = replace(run.train, max_steps=run.train.max_steps if defence.needs - {"base"} else 0)
    try:
        ended = train(
            trained, defence.backward, items, steps, meter=meter, on_step=on_step, seed=run.seed, checkpoint=saved
        )
        if ended.reason == "diverged":
            raise TiterError(f"immunize: {describe(defence)} diverged at step {ended.steps}: lower --learning_rate")
    except BaseException:
        without_adapter(trained)
        raise
    if run.compute.load_in_4bit:
        model, before = _on_base(trained, run, folder / "adapter")
    elif trained is not model:
        model = _merged(trained)
    moved = _distance(model, before)
    save_model(model, tokenizer, folder / MODEL)
    write_lines(folder / "log.jsonl", logs)
    result = {"end": ended.reason, "defence": describe(defence), "steps": ended.steps, "weight_change": moved}
    result |= {"prompts": seen, "passes": meter.passes, "objective": movement(logs)}
    result |= {"last": logs[-1] if logs else edited}
    return Finished(meter.spend, result)


def _examples(run: ImmunizeRun, defence: Defence) -> tuple[str, list[Example], list[Example]]:
    """The digest of the prompts the defence is given, its examples as it wants them, and the benign ones."""
    examples = select(run.data)
    retain = select(run.retain) if run.retain else []
    _require(defence, examples, retain)
    if run.train.padding_free:
        raise TiterError(f"padding_free: defence {defence.name} needs its rows apart: leave it out")
    seen = digest(e.prompt for e in examples)
    if isinstance(defence, Prepares):
        examples = [e for e in defence.prepare([*examples, *retain], run.seed) if e.restricted]
    return seen, examples, retain


def _edited(model: nn.Module, run: ImmunizeRun, defence: Defence) -> dict[str, float]:
    """Edit the weights, where the defence does so before training; what it says of that."""
    if not isinstance(defence, Transforms):
        return {}
    base = load_model(run.base, dtype=run.compute.dtype, device=run.compute.device)[0] if run.base else None
    return defence.transform(model, base, run.seed)


def _merged(trained: nn.Module) -> nn.Module:
    """The model with its adapter folded in."""
    model: nn.Module = merged(trained)
    loaded.cache_clear()  # merging may have untied the kept model's embedding and head
    return model


def _on_base(trained: PreTrainedModel, run: ImmunizeRun, adapter: Path) -> tuple[nn.Module, Snapshot]:
    """The run's model in its own precision with the adapter that was trained on its 4-bit copy; and before that.

    The adapter is kept in the folder given.
    """
    from peft import PeftModel

    trained.save_pretrained(str(adapter))
    readable(adapter)
    without_adapter(trained)
    model, _ = load_model(run.model, dtype=run.compute.dtype, device=run.compute.device)
    before = snapshot(model)
    return merged(PeftModel.from_pretrained(model, str(adapter))), before


def _require(defence: Defence, examples: list[Example], retain: list[Example]) -> None:
    lacking = [e for e in examples if not e.harmful or not e.harmless]
    if lacking and {"harmful", "harmless"} <= defence.needs:
        raise TiterError(
            f"defence {defence.name}: needs a harmful and a harmless response for every prompt, {len(lacking)} rows "
            f"lack one, e.g. {lacking[0].prompt[:50]!r}: select restricted examples with refusals"
        )
    if "retain" in defence.needs and not retain:
        raise TiterError(f"defence {defence.name}: needs benign data to keep: pass --retain_dataset")


def _distance(model: nn.Module, before: Snapshot) -> float:
    """Relative L2 distance of the weights from a snapshot; 0 means the defence changed nothing."""
    now_ = model.state_dict()
    moved = sum(float(whole((now_[k].float() - before[k].float()).pow(2).sum())) for k in before)
    size = sum(float(whole(v.float().pow(2).sum())) for v in before.values())
    return float((moved / size) ** 0.5) if size else 0.0


LEAST = 10  # steps below which a batch's luck decides
BESIDES = {"step", "grad_norm"}


def movement(logs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]] | None:
    """The loss and each of its terms: means over the first and the last fifth of the steps; None when they are few.

    Only steps that log what the last one logs count: a method with phases has another loss in each.
    """
    same = [entry for entry in logs if entry.keys() == logs[-1].keys() and "loss" in entry]
    if len(same) < LEAST:
        return None
    share = len(same) // 5
    return {k: (_mean(same[:share], k), _mean(same[-share:], k)) for k in sorted(same[0].keys() - BESIDES)}


def _mean(entries: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(entry[key] for entry in entries) / len(entries)
