"""Immunize and attack, as Python functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from titer.attacks import make_attack
from titer.data.load import load
from titer.data.roles import check, plan_data
from titer.defences import configure
from titer.evaluation.cells import harm_probe, utility_probe
from titer.evaluation.suites import find_suite
from titer.models.load import check_available, resolve
from titer.runs.checks import check_run
from titer.runs.inputs import identify
from titer.runs.layout import canonical
from titer.runs.provenance import PROVENANCE, Model, data_plan, publish
from titer.runs.runner import Report, execute_all, quiet
from titer.runs.store import MODEL, Store
from titer.schema.errors import TiterError
from titer.schema.evaluation import Setting
from titer.schema.files import read_json
from titer.schema.roles import DataPlan
from titer.schema.specs import DEFAULT_PLAN, AttackRun, ImmunizeRun, Named, Price, Stop, TrainArgs
from titer.schema.types import Budget, Curve, RunRecord

Data = Literal["unseen", "seen", "withheld", "cross"]


@dataclass(frozen=True)
class Attacked:
    """What `attack` returns: a record and a curve per seed."""

    records: tuple[RunRecord, ...]
    curves: tuple[Curve, ...]


def immunize(
    model: Model,
    defence: str = "repnoise",
    dataset: str = "organism",
    *,
    output_dir: str | Path,
    train: TrainArgs = TrainArgs(),
    defence_args: Mapping[str, Any] | None = None,
    retain_dataset: str | None = None,
    base_model: str = "",
    domain: str = "",
    withhold: Sequence[str] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    accelerate_config: str = "",
    load_in_4bit: bool = False,
    tokenizer: Any = None,
    overwrite: bool = False,
    report: Report = quiet,
) -> RunRecord:
    """Make a defended model in `output_dir` (a plain model folder with `titer.json`, the record of how).

    The defence sees the defence split of `dataset`'s defended categories, and the defence split of the open examples
    of `retain_dataset` (default: the same data set; "" gives it none). `base_model` is the model before its alignment,
    for defences that need it (`titer ls defences`). `accelerate_config` (`fsdp2`, `multi_gpu`, `:N` behind it, or a
    file of `accelerate config`) trains on several processes, see `titer.distributed`; `load_in_4bit` trains an adapter
    on a 4-bit copy of the model (extra `bnb`).
    """
    out = Path(output_dir)
    configure(defence, defence_args or {})  # a wrong name or option is told before anything is made
    plan = plan_data(dataset, open_dataset=retain_dataset or dataset, domain=domain, withhold=withhold)
    has_open = retain_dataset != "" and any(not e.restricted for e in load(plan.open_dataset).examples)
    run = ImmunizeRun(
        model=named(model, tokenizer, out),
        defence=Named(defence, dict(defence_args or {})),
        data=plan.defence(),
        retain=plan.retain() if has_open else None,
        train=train,
        base=base_model,
        seed=seed,
        dtype=dtype,
        device=device,
        accelerate_config=canonical(accelerate_config, device),
        load_in_4bit=load_in_4bit,
    )
    check_run(run)
    _refuse_other(out, identify(run), overwrite)
    run_id = execute_all([run], out, overwrite=overwrite, report=report)[0]
    record = Store(out).finished(run_id)
    publish(Store(out).folder(run_id) / MODEL, out, record, plan)
    return record


def _refuse_other(out: Path, run_id: str, overwrite: bool) -> None:
    """An output folder that holds something else is not written to, unless asked."""
    if overwrite or not out.exists():
        return
    if (out / PROVENANCE).is_file():
        if read_json(out / PROVENANCE)["record"]["id"] != run_id:
            raise TiterError(f"output_dir {out}: holds another model: choose another folder or pass --overwrite")
    elif any((out / f).exists() for f in ("config.json", "model.safetensors")):
        raise TiterError(
            f"output_dir {out}: holds a model titer did not make: choose another folder or pass --overwrite"
        )
    elif not out.is_dir():
        raise TiterError(f"output_dir {out}: is a file: choose a folder")


def named(model: Model, tokenizer: Any, out: Path) -> str:
    """A model argument as a name; an object is saved beside the results first."""
    if isinstance(model, str):
        check_available(resolve(model.removeprefix("random:")))
        return model
    if tokenizer is None:
        raise TiterError("model given as an object: pass its tokenizer too (tokenizer=...)")
    from titer.models.weights import save_model

    folder = out / "given-model"
    save_model(model, tokenizer, folder)
    return str(folder)


def attack(
    model: Model,
    attack: str = "sft",
    dataset: str = "organism",
    *,
    output_dir: str | Path,
    attack_args: Mapping[str, Any] | None = None,
    data: Data = "unseen",
    budget: Budget = Budget(steps=100),
    seeds: Sequence[int] = (0, 1, 2),
    n_train: int | None = 100,
    n_eval: int | None = 48,
    open_dataset: str = "",
    domain: str = "",
    withhold: Sequence[str] | None = None,
    plan: Sequence[int] = (),
    stop: Stop = Stop(),
    price: Price = Price(),
    judge: str = "exact",
    max_new_tokens: int = 16,
    dtype: str = "float32",
    device: str = "cpu",
    accelerate_config: str = "",
    load_in_4bit: bool = False,
    workers: int = 1,
    tokenizer: Any = None,
    overwrite: bool = False,
    report: Report = quiet,
) -> Attacked:
    """Attack a model under a budget, once per seed, with harm and utility probed along the way.

    Runs are kept under `output_dir/runs`; a finished one is not redone. `accelerate_config` and `load_in_4bit` as for
    `immunize`; an attack on a 4-bit model trains an adapter (`lora`).
    """
    out = Path(output_dir)
    if not seeds:
        raise TiterError("attack: no seeds: pass one or more with --seeds")
    make_attack(attack, attack_args or {})  # a wrong name or option is told before anything is made
    roles = data_plan(model, dataset, open_dataset, domain, withhold)
    check(roles)
    setting = _bare_setting(roles, n_train, n_eval, judge, max_new_tokens, dtype, device)
    name, layout = named(model, tokenizer, out), canonical(accelerate_config, device)
    runs = [
        AttackRun(
            model=name,
            attack=Named(attack, dict(attack_args or {})),
            data=roles.attack(data, n_train, seed),
            retain=replace(roles.utility(None), split="attack"),
            probes=(harm_probe(data, setting), utility_probe(setting)),
            budget=budget,
            plan=tuple(plan) or DEFAULT_PLAN,
            stop=stop,
            price=price,
            seed=seed,
            dtype=dtype,
            device=device,
            accelerate_config=layout,
            load_in_4bit=load_in_4bit,
        )
        for seed in seeds
    ]
    check_run(runs[0])
    ids = execute_all(runs, out, workers=workers, overwrite=overwrite, report=report)
    store = Store(out)
    records = tuple(map(store.finished, ids))
    return Attacked(records, tuple(store.curve(i, "model", data) for i in ids))


def _bare_setting(
    roles: DataPlan, n_train: int | None, n_eval: int | None, judge: str, max_new_tokens: int, dtype: str, device: str
) -> Setting:
    suite = replace(find_suite("quick"), n_train=n_train, n_eval=n_eval)
    return Setting(suite, roles, "", {}, judge=judge, max_new_tokens=max_new_tokens, dtype=dtype, device=device)
