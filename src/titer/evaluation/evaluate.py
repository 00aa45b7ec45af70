"""Evaluate a model against its reference: plan the runs, do them, and turn them into conditions, flags and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from titer.data.load import load
from titer.data.roles import check, in_blocks
from titer.data.splits import categories
from titer.evaluation.cells import MEASURE, Cell, over_refusal_probe, plan_cells
from titer.evaluation.cost import count, count_words
from titer.evaluation.output import write_results
from titer.evaluation.result import results
from titer.evaluation.suites import customised, find_suite
from titer.models.remote import Server
from titer.runs.measures import check_tasks, with_tasks
from titer.runs.provenance import Model, data_plan, provenance
from titer.runs.runner import Report, execute_all, quiet
from titer.runs.store import Store
from titer.runs.verbs import named
from titer.schema.errors import TiterError
from titer.schema.evaluation import CONDITIONS, Condition, Setting, Task, Thresholds
from titer.schema.specs import (
    Price,
)
from titer.schema.suite import Suite
from titer.schema.types import Curve, Role


def evaluate_models(
    models: Sequence[str],
    setting: Setting | Sequence[Setting],
    root: str | Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    report: Report = quiet,
) -> list[dict[str, Any]]:
    """Evaluate each model against its setting's reference; one results.json content per model, in order.

    `setting` is one for all models, or one for each.

    All runs are planned together, so what two models share (controls) is done once; runs already under `root` are
    reused. What is known of how a model was made (`titer.json` in its folder) goes into its settings.
    """
    settings = one_each(setting, models)
    cells = [plan_cells(model, s) for model, s in zip(models, settings, strict=True)]
    if not any(cells):
        raise TiterError("evaluate: no condition chosen: pass at least one of " + ", ".join(CONDITIONS))
    for s in settings:
        check_tasks(s.lm_eval_tasks)
    runs = [c.run for group in cells for c in group]
    ids = iter(execute_all(runs, root, workers=workers, overwrite=overwrite, report=report))
    store = Store(root)
    found = []
    for model, s, group in zip(models, settings, cells, strict=True):
        curves = [_measured(store.curve(next(ids), c.role, c.data), c, s, root) for c in group]
        found.append(results(model, s, group, curves, provenance(model)))
    return found


def one_each(setting: Setting | Sequence[Setting], models: Sequence[str]) -> list[Setting]:
    """A setting for each model: one given for all, or one each."""
    return [setting] * len(models) if isinstance(setting, Setting) else list(setting)


def _measured(curve: Curve, cell: Cell, s: Setting, root: str | Path) -> Curve:
    """A run's curve; the measurement before any attack also has the scores of the LM evaluation harness's tasks."""
    if cell.data != MEASURE:
        return curve
    run = cell.run
    return with_tasks(curve, run.model, s.lm_eval_tasks, root, dtype=s.dtype, device=s.device, limit=s.lm_eval_limit)


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
