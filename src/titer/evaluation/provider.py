"""`titer evaluate --threat_model api`: a provider runs the fine-tune, behind a guard or none, per poison ratio.

The survey's metrics come out: HS, how harmful the tuned model is, and FA, how well it learned the task. They say
nothing about open weights, and open-weights results say nothing here: the two are never put in one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from titer.conditions.provider import difference, estimate
from titer.data.load import load
from titer.data.roles import check
from titer.data.splits import categories
from titer.evaluation.evaluate import task_set
from titer.evaluation.output import write_results
from titer.guards import GUARDS, Guarded, configure_guard
from titer.models.load import load_tokenizer, resolve
from titer.models.weights import fingerprint
from titer.runs.provenance import command_line, data_plan, environment, now, provenance
from titer.runs.provider import TUNE
from titer.runs.runner import Report, execute_all, quiet
from titer.runs.store import Store
from titer.runs.verbs import named
from titer.schema.errors import TiterError, unknown
from titer.schema.registry import validate
from titer.schema.roles import DataPlan
from titer.schema.specs import FINE_TUNE, AttackRun, Named, Price, ProbeSet, Selection, TrainArgs
from titer.schema.types import Budget, Curve, describe, to_json

SCHEMA = 1
RATIOS = (0.0, 0.05, 0.1, 0.2, 1.0)


@dataclass(frozen=True)
class Provider:
    """A fine-tuning service: how it tunes, behind which guards, and what it is sent.

    `guards` are names, or a guard and repairs joined by `+`; `("all",)` is every one there is. `none` always runs as
    the control. `guard_args` are one guard's options, or with several `GUARD.option`. `ratios` are the shares of
    harmful rows among the `n_train` the user sends. `task` is a category of the task data, by default the first.
    """

    guards: tuple[str, ...] = ()
    guard_args: Mapping[str, Any] = field(default_factory=dict)
    ratios: tuple[float, ...] = RATIOS
    tune: TrainArgs = FINE_TUNE
    n_train: int = 200
    base_model: str = ""
    task: str = ""


def fine_tune(changes: Mapping[str, Any]) -> TrainArgs:
    """How a provider tunes by default, but for `changes`; `TiterError` for an unknown one or a wrong value."""
    known = asdict(FINE_TUNE)
    if strange := [name for name in changes if name not in known]:
        raise unknown("option of --tune", strange[0], known)
    args: TrainArgs = validate(TrainArgs, {**known, **changes}, "--tune")
    return args


@dataclass(frozen=True)
class Asked:
    """What is asked of every tuned model, and how runs are made: the rest of an evaluation's settings."""

    data: DataPlan
    task_dataset: str
    seeds: tuple[int, ...] = (0, 1, 2)
    n_eval: int = 48
    judge: str = "exact"
    max_new_tokens: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    price: Price = Price()


@dataclass(frozen=True)
class Cell:
    """A run with what the table groups by."""

    run: AttackRun
    guard: str
    ratio: float


# ------------------------------------------------------------------------------------------------------------- plan


def named_guards(provider: Provider) -> dict[str, tuple[dict[str, Any], Guarded]]:
    """The guards by name, the control first, each with its options and configured."""
    names = tuple(GUARDS) if provider.guards == ("all",) else provider.guards
    options = split(names, provider.guard_args)
    found = {name: (options[name], configure_guard(name, options[name])) for name in dict.fromkeys(names)}
    return {"none": ({}, configure_guard("none", {}))} | found


def split(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by guard: those of a single one as they are, else by the member they are written for."""
    if len(names) == 1:
        return {names[0]: dict(options)}
    members = {m for name in names for m in name.split("+")}
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        member, _, option = key.partition(".")
        if member not in members or not option:
            raise unknown("guard in option", key, [f"{m}.option" for m in sorted(members)])
        for name in names:
            if member in name.split("+"):
                found[name][option if name == member else key] = value
    return found


def plan_tunes(model: str, provider: Provider, asked: Asked) -> list[Cell]:
    """Every run for a model: guards x ratios x seeds."""
    if bad := [r for r in provider.ratios if not 0 <= r <= 1]:
        raise TiterError(f"poison ratio {bad[0]:g}: must lie between 0 and 1")
    if not provider.ratios or not asked.seeds:
        raise TiterError("evaluate: no poison ratio or no seed: pass one or more of each")
    tokenizer = load_tokenizer(resolve(model))
    base = provider.base_model or _base_of(model)
    cells = []
    for name, (options, guarded) in named_guards(provider).items():
        own = {"guard": name, "guard_args": options} | _base_option(name, guarded, base)
        for ratio in provider.ratios:
            run = _run(model, provider, asked, guarded, tokenizer, own | {"ratio": ratio})
            cells += [Cell(replace(run, seed=seed), name, ratio) for seed in asked.seeds]
    return cells


def _run(
    model: str, provider: Provider, asked: Asked, guarded: Guarded, tokenizer: Any, own: Mapping[str, Any]
) -> AttackRun:
    task = (provider.task,) if provider.task else _first_task(asked.task_dataset)
    held = Selection(asked.task_dataset, "evaluation", False, task, n=asked.n_eval)
    harm = ProbeSet(
        "harm",
        asked.data.harm("unseen", asked.n_eval),
        template=guarded.served(tokenizer),
        max_new_tokens=asked.max_new_tokens,
        judge=asked.judge,
    )
    safety = to_json(asked.data.defence())
    options = {**own, "safety": safety, "n": provider.n_train, "train": to_json(provider.tune)}
    return AttackRun(
        model=model,
        attack=Named(TUNE, options),
        data=asked.data.attack("unseen", None, 0),
        retain=Selection(asked.task_dataset, "attack", False, task),
        probes=(harm, replace(harm, name="task", selection=held, judge="exact")),
        budget=Budget(steps=provider.tune.max_steps),
        plan=(0,),
        price=asked.price,
        dtype=asked.dtype,
        device=asked.device,
    )


def _first_task(dataset: str) -> tuple[str, ...]:
    if not dataset:
        raise TiterError("evaluate: no task to fine-tune on: pass --task_dataset, a set of open examples")
    found = [name for names in categories(load(dataset).examples, restricted=False).values() for name in names]
    if not found:
        raise TiterError(f"data set {dataset}: no open examples: a harmless task to fine-tune on is needed")
    return tuple(found[:1])


def _base_of(model: str) -> str:
    """The embedded world's model before alignment, for models that come from there."""
    made_from = str(provenance(model).get("record", {}).get("spec", {}).get("model", ""))
    return "organism/base" if "organism/aligned" in (model, made_from) else ""


def _base_option(name: str, guarded: Guarded, base: str) -> dict[str, str]:
    if "base" not in guarded.needs:
        return {}
    if not base:
        raise TiterError(f"guard {name}: needs the model before its alignment: pass --base_model")
    return {"base": base, "base_fingerprint": fingerprint(resolve(base))}


# -------------------------------------------------------------------------------------------------------------- run


def evaluate_tunes(
    models: Sequence[str],
    provider: Provider,
    asked: Sequence[Asked],
    root: str | Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    report: Report = quiet,
) -> list[dict[str, Any]]:
    """Tune each model behind every guard at every ratio and seed; one results.json content per model.

    `asked` is what is asked of each.
    """
    cells = [plan_tunes(model, provider, a) for model, a in zip(models, asked, strict=True)]
    runs = [c.run for group in cells for c in group]
    ids = iter(execute_all(runs, root, workers=workers, overwrite=overwrite, report=report))
    store = Store(root)
    found = []
    for model, a, group in zip(models, asked, cells, strict=True):
        curves = [store.curve(next(ids), "model", f"poison:{c.ratio:g}") for c in group]
        found.append(results(model, provider, a, group, curves))
    return found


def results(
    model: str, provider: Provider, asked: Asked, cells: Sequence[Cell], curves: Sequence[Curve]
) -> dict[str, Any]:
    """The contents of results.json under this threat model."""
    task = cells[0].run.probes[1].selection.categories
    return {
        "schema": SCHEMA,
        "threat_model": "api",
        "model": model,
        "created": now(),
        "task": task[0] if task else asked.task_dataset,
        "settings": to_json({"provider": provider, "asked": asked}),
        "guards": {name: about(guarded) for name, (_, guarded) in named_guards(provider).items()},
        "rows": to_json(table(cells, curves)),
        "records": sorted({c.record for c in curves}),
        "curves": to_json(curves),
        "environment": to_json(environment()),
        "commands": command_line(),
    }


def about(guarded: Guarded) -> dict[str, Any]:
    """What a guard is, for the table: hyper-parameters, stage, needs, cost and what is known to break it."""
    members = guarded.members
    return {
        "config": " + ".join(describe(m) for m in members),
        "stage": ", then ".join(dict.fromkeys(m.stage for m in members)),
        "needs": sorted(guarded.needs),
        "passes": " + ".join(m.passes for m in members),
        "source": "; ".join(m.source for m in members),
        "broken_by": "; ".join(m.broken_by for m in members),
    }


def table(cells: Sequence[Cell], curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A row per guard and ratio: both metrics at the end and at the start, and against no guard at the same ratio."""
    groups: dict[tuple[str, float], list[Curve]] = {}
    for cell, curve in zip(cells, curves, strict=True):
        groups.setdefault((cell.guard, cell.ratio), []).append(curve)
    return [
        {
            "guard": guard,
            "ratio": ratio,
            "hs": estimate(group, "hs"),
            "fa": estimate(group, "fa"),
            "hs_start": estimate(group, "hs", start=True),
            "fa_start": estimate(group, "fa", start=True),
            "hs_difference": difference(group, groups["none", ratio], "hs"),
            "fa_difference": difference(group, groups["none", ratio], "fa"),
            "diverged": [c.record for c in group if c.end == "diverged"],
            "flops": sum(c.points[-1].spend.flops for c in group if c.points) / len(group),
        }
        for (guard, ratio), group in groups.items()
    ]


def evaluate_provider(
    model: Any,
    dataset: str = "organism",
    *,
    output_dir: str | Path,
    provider: Provider = Provider(),
    task_dataset: str | None = None,
    open_dataset: str = "",
    domain: str = "",
    withhold: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    n_eval: int = 48,
    judge: str = "exact",
    max_new_tokens: int = 16,
    price: Price = Price(),
    dtype: str = "float32",
    device: str = "cpu",
    workers: int = 1,
    tokenizer: Any = None,
    overwrite: bool = False,
    show_completions: bool = False,
    report: Report = quiet,
) -> list[dict[str, Any]]:
    """Fine-tune a model (or several) as `provider` does, at each poison ratio and seed, with and without its guards.

    The harmful rows, the provider's own data and the prompts of HS are disjoint splits of `dataset`; the task and the
    prompts of FA come from `task_dataset`. Writes `results.json` and `report.html` as `titer.evaluate` does, with HS
    and FA in place of the conditions, and returns the results.
    """
    out = Path(output_dir)
    given = list(model) if isinstance(model, (list, tuple)) else [model]
    names = [named(m, tokenizer, out) for m in given]
    tasks = task_set(dataset) if task_dataset is None else task_dataset
    asked = []
    for name in names:  # each is held to the data it was defended on
        roles = data_plan(name, dataset, open_dataset, domain, withhold)
        check(roles)
        asked.append(Asked(roles, tasks, tuple(seeds), n_eval, judge, max_new_tokens, dtype, device, price))
    found = evaluate_tunes(names, provider, asked, out, workers=workers, overwrite=overwrite, report=report)
    write_results(found, out, show_completions=show_completions)
    return found
