"""The Python face of titer: `immunize`, `attack`, `evaluate`, one function per command, same names and defaults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from titer.attacks import make_attack
from titer.attacks.suite import Suite, find_suite
from titer.data import load
from titer.data.plan import DataPlan, check, in_blocks, plan_data
from titer.data.split import categories
from titer.defences import configure
from titer.distributed import canonical, check_run
from titer.errors import TiterError
from titer.evaluation import (
    CONDITIONS,
    PROVENANCE,
    Condition,
    Setting,
    Task,
    Thresholds,
    command_line,
    evaluate_models,
    harm_probe,
    over_refusal_probe,
    provenance,
    utility_probe,
)
from titer.executors import Report, execute_all, quiet
from titer.flags import raise_flags
from titer.harness import MODEL, identify
from titer.models import check_available, resolve
from titer.planning import count, count_words
from titer.served import Server
from titer.specs import DEFAULT_PLAN, AttackRun, ImmunizeRun, Named, Price, Stop, TrainArgs
from titer.store import COMPLETIONS, Store, read_json, write_json, write_text
from titer.types import Budget, Curve, Role, RunRecord, to_json

SEARCH = "search.json"  # what `titer search` leaves in its output folder
Model = Any  # a name, a folder, a hub id; or a transformers model with its tokenizer beside it
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


def publish(folder: Path, out: Path, record: RunRecord, plan: DataPlan) -> None:
    """Put a run's model files into `out` (linked where the disk allows) with the record of how they were made."""
    for file in sorted(folder.iterdir()):
        target, scratch = out / file.name, out / f".{file.name}.new"
        scratch.unlink(missing_ok=True)
        try:
            os.link(file, scratch)
        except OSError:
            shutil.copy2(file, scratch)
        os.replace(scratch, target)
        scratch.unlink(missing_ok=True)  # renaming one link of a file onto another does nothing
    write_json(out / PROVENANCE, {"record": to_json(record), "data": to_json(plan), "commands": command_line()})


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
    from titer.models import save_model

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


def data_plan(
    model: Model, dataset: str, open_dataset: str = "", domain: str = "", withhold: Sequence[str] | None = None
) -> DataPlan:
    """The roles of the data: those the model was immunized with when it says so, else from the arguments."""
    known = provenance(model).get("data") if isinstance(model, str) else None
    if known and known["dataset"] == dataset and not domain and withhold is None:
        from titer.types import from_json

        return from_json(DataPlan, known)
    return plan_data(dataset, open_dataset=open_dataset, domain=domain, withhold=withhold)


def evaluate(
    model: Model | Sequence[Model],
    reference: str = "",
    dataset: str = "organism",
    *,
    output_dir: str | Path,
    suite: str = "quick",
    conditions: Sequence[Condition] = CONDITIONS,
    controls: Mapping[Role, str] | None = None,
    task_dataset: str | None = None,
    open_dataset: str = "",
    domain: str = "",
    withhold: Sequence[str] | None = None,
    thresholds: Thresholds = Thresholds(),
    price: Price = Price(),
    judge: str = "exact",
    max_new_tokens: int = 16,
    max_steps: int | None = None,
    seeds: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    lm_eval_tasks: Sequence[str] = (),
    lm_eval_limit: int | None = None,
    over_refusal_dataset: Sequence[str] = (),
    generate_url: str = "",
    reference_url: str = "",
    dtype: str = "float32",
    device: str = "cpu",
    workers: int = 1,
    tokenizer: Any = None,
    overwrite: bool = False,
    show_completions: bool = False,
    report: Report = quiet,
    announce: Callable[[str], None] = lambda cost: None,
) -> list[dict[str, Any]]:
    """Attack a model (or several) and its reference with a suite and judge the four immunization conditions.

    Models that say what data they were defended on are each held to it; where they differ, attacks for generalization
    train on one block of categories at a time, so that the report can show defence data against attack data.
    Writes `output_dir/results.json` (one model; several go to `results-N.json`) and one `output_dir/report.html`, and
    returns the results. `reference` defaults to what the model was made from. `max_steps`, `seeds` and
    `learning_rates` change the suite, which then is named `custom`. `lm_eval_tasks` are tasks of the LM evaluation
    harness (or folders of them) that stability asks besides, the first `lm_eval_limit` samples of each; of
    `over_refusal_dataset` (such as `xstest`) it asks open prompts and counts refusals.
    With `generate_url` (and `reference_url`) the model's (and the reference's) completions come from an
    OpenAI-compatible server, `http://HOST/v1#model=NAME`: for `conditions=("stability",)`. Give one such model.
    `announce` is told the cost (runs, and steps at most) before anything is run.
    """
    out = Path(output_dir)
    if reference:
        named(reference, None, out)
    given = list(model) if isinstance(model, (list, tuple)) else [model]
    if generate_url and len(given) > 1:
        raise TiterError("generate_url: a server holds one of the models: evaluate them one by one")
    names = [named(m, tokenizer, out) for m in given]
    attacks = customised(find_suite(suite), max_steps, seeds, learning_rates)
    made = [
        setting_of(
            name,
            reference,
            dataset,
            suite=attacks,
            conditions=conditions,
            controls=controls,
            task_dataset=task_dataset,
            open_dataset=open_dataset,
            domain=domain,
            withhold=withhold,
            thresholds=thresholds,
            price=price,
            judge=judge,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            lm_eval_tasks=lm_eval_tasks,
            lm_eval_limit=lm_eval_limit,
            over_refusal_dataset=over_refusal_dataset,
            generate_url=generate_url,
            reference_url=reference_url,
        )
        for name in names
    ]
    settings = side_by_side(made)
    announce(count_words(count(names, settings), attacks))
    found = evaluate_models(names, settings, out, workers=workers, overwrite=overwrite, report=report)
    write_results(found, out, show_completions=show_completions)
    return found


def setting_of(
    model: str,
    reference: str,
    dataset: str,
    *,
    suite: Suite,
    conditions: Sequence[Condition] = CONDITIONS,
    controls: Mapping[Role, str] | None = None,
    task_dataset: str | None = None,
    open_dataset: str = "",
    domain: str = "",
    withhold: Sequence[str] | None = None,
    thresholds: Thresholds = Thresholds(),
    price: Price = Price(),
    judge: str = "exact",
    max_new_tokens: int = 16,
    dtype: str = "float32",
    device: str = "cpu",
    lm_eval_tasks: Sequence[str] = (),
    lm_eval_limit: int | None = None,
    over_refusal_dataset: Sequence[str] = (),
    generate_url: str = "",
    reference_url: str = "",
) -> Setting:
    """What `evaluate` will do for a model, with every default resolved and the data proven disjoint."""
    _check_served(generate_url, reference_url, conditions, lm_eval_tasks)
    roles = data_plan(model, dataset, open_dataset, domain, withhold)
    check(roles)
    base = reference or _reference_of(model)
    return Setting(
        suite=suite,
        data=roles,
        reference=base,
        controls=default_controls(base) if controls is None else controls,
        tasks=tasks_of(task_set(dataset) if task_dataset is None else task_dataset),
        conditions=tuple(conditions),
        thresholds=thresholds,
        price=price,
        judge=judge,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        lm_eval_tasks=tuple(t for given in lm_eval_tasks for t in given.split(",") if t),
        lm_eval_limit=lm_eval_limit,
        extra_probes=tuple(over_refusal_probe(name) for name in over_refusal_dataset),
        generate_url=generate_url,
        reference_url=reference_url,
    )


def side_by_side(settings: Sequence[Setting]) -> list[Setting]:
    """The settings of models that are evaluated together, their data in common blocks where it differs."""
    plans = in_blocks([s.data for s in settings])
    return [replace(s, data=plan) for s, plan in zip(settings, plans, strict=True)]


def _check_served(url: str, reference_url: str, conditions: Sequence[Condition], tasks: Sequence[str]) -> None:
    """What a server says is enough for stability alone, and for none of the tasks that read probabilities."""
    for given in filter(None, (url, reference_url)):
        Server.at(given)
    if (url or reference_url) and (tuple(conditions) != ("stability",) or tasks):
        raise TiterError(
            "generate_url: a served model can be asked, not attacked: pass --conditions stability, no lm_eval_tasks"
        )


def write_results(found: Sequence[Mapping[str, Any]], out: Path, *, show_completions: bool = False) -> Path:
    """Write results.json (numbered when there are several) and the report over all of them; the report's path."""
    for i, one in enumerate(found, start=1):
        write_json(out / ("results.json" if len(found) == 1 else f"results-{i}.json"), one)
    render_report([(one, out) for one in found], out / "report.html", show_completions=show_completions)
    return out / "report.html"


def load_results(paths: Sequence[str | Path]) -> list[tuple[Mapping[str, Any], Path]]:
    """Stored results with the folder of their runs, from results.json files or folders of `evaluate`."""
    found: list[tuple[Mapping[str, Any], Path]] = []
    for path in map(Path, paths):
        files = sorted(path.glob("results*.json")) if path.is_dir() else [path]
        if not files:
            raise TiterError(f"{path}: no results.json in this folder: pass an output folder of `titer evaluate`")
        found += [(read_json(file), file.parent) for file in files]
    if not found:
        raise TiterError("report: no results given: pass results.json files or folders of `titer evaluate`")
    return found


def render_report(
    found: Sequence[tuple[Mapping[str, Any], Path]], output: str | Path, *, show_completions: bool = False
) -> None:
    """Write one HTML report over stored results.

    Completions, what `titer judge` found of them, and what `titer search` found of the model are looked up in each
    result's folder.
    """
    from titer.report import render

    completions: dict[str, Any] = {}
    for one, folder in found:
        store = Store(folder)
        for run_id in one["records"]:
            if run_id not in completions and (store.folder(run_id) / COMPLETIONS).is_file():
                completions[run_id] = to_json(store.completions(run_id))
    whole = [{**one, **beside(one, folder)} for one, folder in found]
    write_text(Path(output), render(whole, show_completions=show_completions, completions=completions))


def beside(one: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What lies beside a result: `judges`, with a flag where they disagree, and `search` when it was of this model."""
    from titer.rejudge import JUDGES

    found: dict[str, Any] = {}
    if (folder / JUDGES).is_file():
        judged = read_json(folder / JUDGES)
        kappas = {" / ".join(a["judges"]): a["kappa"] for a in judged["agreements"] if a["kappa"] is not None}
        flags = [f for f in raise_flags([], agreement=kappas) if f.code == "judges-disagree"]
        found = {"judges": judged, "flags": [*one["flags"], *to_json(flags)]}
    if (folder / SEARCH).is_file() and (searched := read_json(folder / SEARCH))["model"] == one["model"]:
        found["search"] = searched
    return found


def customised(suite: Suite, max_steps: int | None, seeds: Sequence[int], rates: Sequence[float]) -> Suite:
    """The suite with another budget, seeds or learning rates, named `custom`; unchanged when none is given."""
    if max_steps is None and not seeds and not rates:
        return suite

    def changed(members: Any) -> Any:
        if rates and members:
            members = tuple(
                replace(members[0], attack=Named(members[0].attack.name, {"learning_rate": lr})) for lr in rates
            )
        return tuple(replace(m, seeds=tuple(seeds) or m.seeds) for m in members)

    steps = suite.max_steps if max_steps is None else max_steps
    probes = tuple(sorted({*(p for p in DEFAULT_PLAN if p < steps), steps}))
    wide = changed(suite.wide)
    controls = changed(suite.controls)
    return replace(
        suite,
        name="custom",
        members=changed(suite.members),
        wide=wide[-1:] if rates else wide,
        controls=controls,
        max_steps=steps,
        plan=probes,
    )


def _reference_of(model: str) -> str:
    known = provenance(model).get("record", {}).get("spec", {}).get("model")
    if known:
        return str(known)
    if model.startswith("organism/"):
        return "organism/aligned"
    raise TiterError(f"model {model}: titer did not make it, so its reference is unknown: pass --reference")


def default_controls(reference: str) -> dict[Role, str]:
    """The ideal where there is one (the embedded world's `ignorant`), and the reference's shape with fresh weights."""
    if reference.startswith("organism/"):
        return {"ignorant": "organism/ignorant", "random": "organism/random"}
    return {"random": f"random:{reference}"}


def task_set(dataset: str) -> str:
    """The harmless tasks that go with a data set; none but for the embedded world."""
    return "organism/tasks" if dataset == "organism" else ""


def tasks_of(dataset: str) -> tuple[Task, ...]:
    """One trainability task per category of a data set of open examples; none for ""."""
    if not dataset:
        return ()
    found = categories(load(dataset).examples, restricted=False)
    return tuple(Task(name, dataset) for names in found.values() for name in names)


__all__ = ["Attacked", "attack", "evaluate", "immunize"]
