"""Run one spec in one process: load what it names, do it, leave a finished run folder. Done runs are not redone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from titer import distributed
from titer.attacks import Session, Stopped, make_attack
from titer.attacks.session import without_adapter
from titer.checkpoint import Checkpoint
from titer.data import load, select
from titer.data.pairs import pairs
from titer.data.plan import digest
from titer.defences import Prepares, Transforms, configure
from titer.errors import TiterError
from titer.judges.cost import bills, since
from titer.judges.identity import identity
from titer.meter import Meter
from titer.models import Snapshot, fingerprint, load_model, load_tokenizer, resolve, restore, save_model, snapshot
from titer.objective import movement
from titer.probe import Prober
from titer.served import Server
from titer.sharding import distribute, whole, world
from titer.specs import SAID, AttackRun, ImmunizeRun, Run, run_id, selections
from titer.store import COMPLETIONS, CURVE, RECORD, Store, environment, now, write_json, write_lines
from titer.train import train, with_lora
from titer.types import Example, RunRecord, Spend, describe, to_json

SAVE_SECONDS = 60.0
MODEL = "model"  # folder of a defended model inside its run folder
Progress = Callable[[int], None]


def inputs(run: Run) -> dict[str, str]:
    """Fingerprints of everything a run reads: its model, other models it is held against, judges and data sets."""
    fresh = run.model == "organism/random" or run.model.startswith("random:")
    where = fingerprint(resolve(run.model.removeprefix("random:")))
    found = {"model": f"random:{where}" if fresh else where}
    if isinstance(run, ImmunizeRun) and run.base:
        found["base"] = fingerprint(resolve(run.base))
    if isinstance(run, AttackRun):
        if name := reference(run):
            found["reference"] = fingerprint(resolve(name))
        found |= {f"judge:{judge}": known for judge in judges_of(run) if (known := identity(judge))}
    return found | {s.dataset: load(s.dataset).hash for s in selections(run).values()}


def judges_of(run: AttackRun) -> list[str]:
    """The judges that score a run's probe sets, each once."""
    return list(dict.fromkeys(p.judge for p in run.probes))


def reference(run: AttackRun) -> str:
    """The other model that probe sets compare with, "" for none; `TiterError` when there are several."""
    found = list(dict.fromkeys(p.reference for p in run.probes if p.reference))
    if len(found) > 1:
        raise TiterError(f"probe sets: {found[0]} and {found[1]}: a run compares with one reference")
    return found[0] if found else ""


def identify(run: Run) -> str:
    """The content address of a run."""
    return run_id(run, inputs(run))


def execute(
    run: Run,
    root: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
    save_seconds: float = SAVE_SECONDS,
) -> RunRecord:
    """Do a run unless its folder is already there; the record of the finished run either way.

    An immunization, and the fine-tune an attack begins with, saves where it stands every `save_seconds` and goes on
    from there when it was killed; one on several processes begins anew.
    """
    if run.accelerate_config and world()[1] == 1:
        return distributed.execute(run, root, overwrite=overwrite, save_seconds=save_seconds)
    store, name, started = Store(root), identify(run), time.perf_counter()
    done = None if overwrite else store.record(name)
    if done is not None:
        return done
    alone = world()[1] == 1
    saved = Checkpoint(store.root / "runs" / ".checkpoints" / name, seconds=save_seconds if alone else math.inf)
    if overwrite:
        saved.clear()
    with store.writing(name) as folder:
        if isinstance(run, ImmunizeRun):
            finished = _immunize(run, progress, folder, saved)
        else:
            finished = _attack(run, progress, folder, saved)
        record = RunRecord(
            id=name,
            kind=run.kind,
            spec=to_json(run),
            status="finished",
            spend=finished.spend,
            seed=run.seed,
            created=now(),
            environment={
                **environment(),
                "processes": world()[1],
                "wall_seconds": round(time.perf_counter() - started, 3),
            },
            data_hashes={role: load(s.dataset).hash for role, s in selections(run).items()},
            result=finished.result,
        )
        write_json(folder / RECORD, record)
    saved.clear()
    return record


@dataclass(frozen=True)
class _Finished:
    spend: Spend
    result: Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------------- models


@dataclass
class _Loaded:
    model: Any
    tokenizer: Any
    saved: Snapshot


@lru_cache(maxsize=2)
def _loaded(content: str, name: str, how: _How) -> _Loaded:
    model, tokenizer = _placed(name, how)
    return _Loaded(model, tokenizer, snapshot(model))


@dataclass(frozen=True)
class _How:
    """How a run has its models."""

    dtype: str
    device: str
    accelerate_config: str
    load_in_4bit: bool
    seed: int = 0

    @classmethod
    def of(cls, run: Run, seed: int = 0) -> _How:
        """Those of a run."""
        return cls(run.dtype, run.device, run.accelerate_config, run.load_in_4bit, seed)


def _placed(name: str, how: _How) -> tuple[Any, Any]:
    """A model on its device, or held together with the other processes of this run."""
    layout = distributed.layout(how.accelerate_config, how.device)
    if layout is None:
        return load_model(name, dtype=how.dtype, device=how.device, seed=how.seed, load_in_4bit=how.load_in_4bit)
    model, tokenizer = load_model(name, dtype=how.dtype, seed=how.seed)
    return distribute(model, layout.kind, how.device), tokenizer


def _model(run: Run, content: str) -> tuple[Any, Any]:
    """The run's model as released: loaded once per process, then restored from a copy, bit for bit."""
    seed = run.seed if content.startswith("random:") else 0
    kept = _loaded(content, run.model, _How.of(run, seed))
    restore(kept.model, kept.saved)
    return kept.model, kept.tokenizer


def _reference(run: AttackRun) -> Any:
    """The model that the run's probe sets compare with, or None when none does."""
    name = reference(run)
    if not name:
        return None
    own_copy = -1  # the reference may be the very model that is attacked
    kept = _loaded(fingerprint(resolve(name)), name, _How.of(run, own_copy))
    restore(kept.model, kept.saved)
    return kept.model


# ---------------------------------------------------------------------------------------------------------- attack


def _attack(run: AttackRun, progress: Progress, folder: Path, saved: Checkpoint) -> _Finished:
    attack = make_attack(run.attack.name, run.attack.options)
    examples = select(run.data)
    probes = {p.name: select(p.selection) for p in run.probes}
    retain = select(run.retain) if run.retain else []
    server = _server(run)
    if server is None:
        model, tokenizer = _model(run, inputs(run)["model"])
    else:
        model, tokenizer = None, load_tokenizer(resolve(run.model))
    before = bills(judges_of(run))
    session = Session(
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        retain=retain,
        prober=Prober(run.probes, probes, tokenizer, reference=_reference(run), server=server),
        budget=run.budget,
        plan=run.plan,
        stop=run.stop,
        seed=run.seed,
        meter=Meter(usd_per_exaflop=run.price.usd_per_exaflop),
        test_template=attack.test_template,
        on_progress=progress,
        saved=saved,
    )
    _drive(session, attack)
    write_lines(folder / CURVE, session.points)
    write_lines(folder / COMPLETIONS, session.completions)
    result = {
        "end": session.end,
        "attack": attack.name,
        "config": label(attack, run.attack.options),
        "passes": session.meter.passes,
        "trained_on": len(examples),
    }
    judging = since(before, bills(judges_of(run)))
    return _Finished(session.meter.spend, result | ({"judging": judging} if judging else {}))


def _server(run: AttackRun) -> Server | None:
    """The server that holds the run's model, if it names one; `TiterError` for what needs the weights."""
    if not run.generate_url:
        return None
    if run.attack.name != "none":
        raise TiterError(
            f"generate_url: the attack {run.attack.name} changes weights, a server's cannot be: leave it out"
        )
    blind = [p.name for p in run.probes if p.measure not in SAID]
    if blind:
        raise TiterError(f"generate_url: the probe set {blind[0]} needs the model's weights: leave one of them out")
    return Server.at(run.generate_url)


def label(attack: Any, options: Mapping[str, Any]) -> str:
    """The attack with the options it was given, learning rate always among them: what configurations are told by."""
    rate = {"learning_rate": attack.train.learning_rate} if any(f.name == "train" for f in fields(attack)) else {}
    shown = sorted(_flat({**rate, **options}).items())
    words = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown]
    return f"{attack.name}({', '.join(words)})" if words else str(attack.name)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of a nested mapping named `outer.inner`; `train` is left out of such names."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {k if key == "train" else f"{key}.{k}": v for k, v in inner.items()}
    return flat


def _drive(session: Session, attack: Any) -> None:
    """Probe, let the attack work until it is done or stopped, probe the end; the model is bare again in any case."""
    with closing(session):
        try:
            session.probe()
            if not session.over:
                attack.run(session)
        except Stopped:
            pass
        session.finish()


# -------------------------------------------------------------------------------------------------------- immunize


def _immunize(run: ImmunizeRun, progress: Progress, folder: Path, saved: Checkpoint) -> _Finished:
    defence = configure(run.defence.name, run.defence.options)
    examples = select(run.data)
    retain = select(run.retain) if run.retain else []
    _require(defence, examples, retain)
    if run.train.padding_free:
        raise TiterError(f"padding_free: defence {defence.name} needs its rows apart: leave it out")
    seen = digest(e.prompt for e in examples)
    if isinstance(defence, Prepares):
        examples = [e for e in defence.prepare([*examples, *retain], run.seed) if e.restricted]
    model, tokenizer = _model(run, inputs(run)["model"])
    reference = None
    if "reference" in defence.needs:
        reference, _ = _placed(run.model, _How.of(run))
    before, logs = snapshot(model), []
    meter = Meter(also=() if reference is None else (reference,))
    edited: dict[str, float] = {}
    if isinstance(defence, Transforms):
        base = load_model(run.base, dtype=run.dtype, device=run.device)[0] if run.base else None
        edited = defence.transform(model, base, run.seed)

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
        reference=reference,
        seed=run.seed,
        device=run.device,
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
    if run.load_in_4bit:
        model, before = _on_base(trained, run, folder / "adapter")
    elif trained is not model:
        model = trained.merge_and_unload()
    moved = _distance(model, before)
    save_model(model, tokenizer, folder / MODEL)
    write_lines(folder / "log.jsonl", logs)
    result = {"end": ended.reason, "defence": describe(defence), "steps": ended.steps, "weight_change": moved}
    result |= {"prompts": seen, "passes": meter.passes, "objective": movement(logs)}
    result |= {"last": logs[-1] if logs else edited}
    return _Finished(meter.spend, result)


def _on_base(trained: Any, run: ImmunizeRun, adapter: Path) -> tuple[Any, Snapshot]:
    """The run's model in its own precision with the adapter that was trained on its 4-bit copy; and before that.

    The adapter is kept in the folder given.
    """
    from peft import PeftModel

    trained.save_pretrained(str(adapter))
    without_adapter(trained)
    model, _ = load_model(run.model, dtype=run.dtype, device=run.device)
    before = snapshot(model)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), before


def _require(defence: Any, examples: list[Example], retain: list[Example]) -> None:
    lacking = [e for e in examples if not e.harmful or not e.harmless]
    if lacking and {"harmful", "harmless"} <= defence.needs:
        raise TiterError(
            f"defence {defence.name}: needs a harmful and a harmless response for every prompt, {len(lacking)} rows "
            f"lack one, e.g. {lacking[0].prompt[:50]!r}: select restricted examples with refusals"
        )
    if "retain" in defence.needs and not retain:
        raise TiterError(f"defence {defence.name}: needs benign data to keep: pass --retain_dataset")


def _distance(model: Any, before: Snapshot) -> float:
    """Relative L2 distance of the weights from a snapshot; 0 means the defence changed nothing."""
    now_ = model.state_dict()
    moved = sum(float(whole((now_[k].float() - before[k].float()).pow(2).sum())) for k in before)
    size = sum(float(whole(v.float().pow(2).sum())) for v in before.values())
    return float((moved / size) ** 0.5) if size else 0.0
