"""`titer evaluate --threat_model api`: a provider runs the fine-tune, behind a guard or none, per poison ratio.

The survey's metrics come out: HS, how harmful the tuned model is, and FA, how well it learned the task. They say
nothing about open weights, and open-weights results say nothing here: the two are never put in one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from titer.conditions.provider import difference, estimate
from titer.data.load import load
from titer.data.roles import check
from titer.data.splits import categories
from titer.evaluation.cases import task_set
from titer.evaluation.output import write_results
from titer.guards import GUARDS, Guarded, configure_guard
from titer.models.load import load_tokenizer, resolve
from titer.models.weights import fingerprint
from titer.runs.layout import canonical
from titer.runs.provenance import Model, command_line, environment, now, parent, roles_of
from titer.runs.provider import TUNE
from titer.runs.runner import Runner, Runs
from titer.runs.verbs import named
from titer.schema.errors import TiterError, unknown
from titer.schema.evaluation import Provider
from titer.schema.registry import named_as, validate
from titer.schema.roles import Roles
from titer.schema.specs import FINE_TUNE, AttackRun, Cell, Named, ProbeSet, Selection, Template, TrainArgs
from titer.schema.types import Budget, Curve, describe, to_json

SCHEMA = 1


def fine_tune(changes: Mapping[str, Any]) -> TrainArgs:
    """How a provider tunes by default, but for `changes`; `TiterError` for an unknown one or a wrong value."""
    known = asdict(FINE_TUNE)
    if strange := [name for name in changes if name not in known]:
        raise unknown("option of --tune", strange[0], known)
    args: TrainArgs = validate(TrainArgs, {**known, **changes}, "--tune")
    return args


@dataclass(frozen=True)
class Provided:
    """A provider's question about one model: who sees what, the task that is tuned on, and what is asked."""

    model: str
    roles: Roles
    task_dataset: str
    asked: Provider


def named_guards(asked: Provider) -> dict[str, tuple[dict[str, Any], Guarded]]:
    """The guards by name, the control first, each with its options and configured."""
    texts = tuple(GUARDS) if asked.guard == ("all",) else asked.guard
    if len(texts) > 1 and asked.guard_args:
        raise TiterError("guard_args: several guards: write each one's options behind it, as lisa#rho=0.1")
    found: dict[str, tuple[dict[str, Any], Guarded]] = {"none": ({}, configure_guard("none", {}))}
    for text in texts:
        named = named_as("guard", text, asked.guard_args)
        found[named.name] = (dict(named.options), configure_guard(named.name, named.options))
    return found


def cells_of(case: Provided) -> list[Cell]:
    """Every run for a model: guards x ratios x seeds."""
    asked = case.asked
    tokenizer = load_tokenizer(resolve(case.model))
    base = asked.base_model or _base_of(case.model)
    cells = []
    for name, (options, guarded) in named_guards(asked).items():
        own = {"guard": name, "guard_args": options} | _base_option(name, guarded, base)
        for ratio in asked.poison_ratios:
            run = _run(case, guarded.served(tokenizer), own | {"ratio": ratio})
            labels = {"guard": name, "ratio": f"{ratio:g}", "data": f"poison:{ratio:g}"}
            cells += [Cell(replace(run, seed=seed), labels) for seed in asked.seeds]
    return cells


def _run(case: Provided, served: Template, own: Mapping[str, Any]) -> AttackRun:
    asked, roles = case.asked, case.roles
    task = (asked.task,) if asked.task else _first_task(case.task_dataset)
    held = Selection(case.task_dataset, "evaluation", False, task, n=asked.n_eval)
    harm = ProbeSet(
        "harm",
        roles.harm("unseen", asked.n_eval),
        template=served,
        max_new_tokens=asked.grading.max_new_tokens,
        judge=asked.grading.judge,
    )
    tune = fine_tune(asked.tune)
    options = {**own, "safety": to_json(roles.defence()), "n": asked.n_train, "train": to_json(tune)}
    return AttackRun(
        model=case.model,
        attack=Named(TUNE, options),
        data=roles.attack("unseen", None, 0),
        retain=Selection(case.task_dataset, "attack", False, task),
        probes=(harm, replace(harm, name="task", selection=held, judge="exact")),
        budget=Budget(steps=tune.max_steps),
        plan=(0,),
        price=asked.price,
        compute=asked.compute,
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
    return "organism/base" if "organism/aligned" in (model, parent(model)) else ""


def _base_option(name: str, guarded: Guarded, base: str) -> dict[str, str]:
    if "base" not in guarded.needs:
        return {}
    if not base:
        raise TiterError(f"guard {name}: needs the model before its alignment: pass --base_model")
    return {"base": base, "base_fingerprint": fingerprint(resolve(base))}


# -------------------------------------------------------------------------------------------------------------- run


def evaluate_tunes(cases: Sequence[Provided], runner: Runs) -> list[dict[str, Any]]:
    """Tune each model behind every guard at every ratio and seed; one results.json content per model."""
    asked = [cells_of(case) for case in cases]
    curves = iter(runner.curves([cell for cells in asked for cell in cells]))
    return [results(case, cells, [next(curves) for _ in cells]) for case, cells in zip(cases, asked, strict=True)]


def results(case: Provided, cells: Sequence[Cell], curves: Sequence[Curve]) -> dict[str, Any]:
    """The contents of results.json under this threat model."""
    run = cells[0].run
    assert isinstance(run, AttackRun)
    task = run.probes[1].selection.categories
    return {
        "schema": SCHEMA,
        "threat_model": "api",
        "model": case.model,
        "created": now(),
        "task": task[0] if task else case.task_dataset,
        "settings": to_json({"provider": case.asked, "data": case.roles}),
        "guards": {name: about(guarded) for name, (_, guarded) in named_guards(case.asked).items()},
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
        key = str(cell.labels["guard"]), float(cell.labels["ratio"])
        groups.setdefault(key, []).append(curve)
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
    model: Model | Sequence[Model],
    asked: Provider = Provider(),
    *,
    output_dir: str | Path,
    runner: Runner | None = None,
    tokenizer: object = None,
    show_completions: bool = False,
) -> list[dict[str, Any]]:
    """Fine-tune a model (or several) as a provider does, at each poison ratio and seed, with and without its guards.

    The harmful rows, the provider's own data and the prompts of HS are disjoint splits of the data set; the task and
    the prompts of FA come from `task_dataset`. Writes `results.json` and `report.html` as `titer.evaluate` does, with
    HS and FA in place of the conditions, and returns the results.
    """
    out = Path(output_dir)
    given = list(model) if isinstance(model, (list, tuple)) else [model]
    names = [named(m, tokenizer, out) for m in given]
    cases = [_provided(name, replace(asked, compute=canonical(asked.compute))) for name in names]
    found = evaluate_tunes(cases, runner or Runner(out))
    write_results(found, out, show_completions=show_completions)
    return found


def _provided(model: str, asked: Provider) -> Provided:
    """A model's case, held to the data it was defended on."""
    roles = roles_of(model, asked.data)
    check(roles)
    tasks = task_set(asked.data.dataset) if asked.task_dataset is None else asked.task_dataset
    return Provided(model, roles, tasks, asked)
