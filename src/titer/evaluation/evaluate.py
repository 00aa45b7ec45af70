"""Evaluate models against their references: cases, their runs, and what the conditions say of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from titer.conditions import Condition
from titer.conditions.stability import Stability
from titer.evaluation.cases import cases, cells_of, conditions_of, examined
from titer.evaluation.cost import count, count_words
from titer.evaluation.output import write_results
from titer.evaluation.result import Results, results
from titer.runs.measures import check_tasks, with_tasks
from titer.runs.provenance import Model, provenance
from titer.runs.runner import Runner, Runs
from titer.runs.verbs import named
from titer.schema.evaluation import MEASURE, OWN, Case, Evaluation
from titer.schema.specs import Cell
from titer.schema.types import Curve

SALT = "salt.txt"
Announce = Callable[[str], None]


def silent(cost: str) -> None:
    """An `Announce` that says nothing."""


def evaluate(
    model: Model | Sequence[Model],
    asked: Evaluation = Evaluation(),
    *,
    output_dir: str | Path,
    runner: Runner | None = None,
    tokenizer: object = None,
    show_completions: bool = False,
    announce: Announce = silent,
) -> list[Results]:
    """Attack a model (or several) and its reference with a suite and judge the immunization conditions.

    Writes `output_dir/results.json` (one model; several go to `results-N.json`) and one `output_dir/report.html`, and
    returns the results. `runner` says how runs are done (workers, overwrite, progress); `announce` is told the cost
    (runs, and steps at most) before anything is run. Raises `TiterError` for what cannot be asked.
    """
    out = Path(output_dir)
    given = list(model) if isinstance(model, (list, tuple)) else [model]
    names = [named(m, tokenizer, out) for m in given]
    runner = runner or Runner(out)
    found = cases(names, replace(asked, salt=asked.salt or known_salt(runner.root)))
    announce(count_words(count(found), found[0].suite))
    told = evaluate_cases(found, runner, conditions_of(asked))
    write_results(told, out, show_completions=show_completions)
    return told


def evaluate_cases(found: Sequence[Case], runner: Runs, conditions: Sequence[Condition]) -> list[Results]:
    """The results of every case, in order.

    All runs are planned together, so what two models share (controls) is done once; finished runs are reused.
    """
    for condition in conditions:
        if isinstance(condition, Stability):
            check_tasks(condition.lm_eval)
    found = [examined(case) for case in found]
    asked = [cells_of(case, conditions) for case in found]
    keep_salt(runner.root, found[0].asked.salt if found else "")
    curves = iter(runner.curves([cell for cells in asked for cell in cells]))
    told = []
    for case, cells in zip(found, asked, strict=True):
        own = [_measured(next(curves), cell, conditions, runner) for cell in cells]
        told.append(results(case, cells, own, conditions, provenance(case.model)))
    return told


def known_salt(root: Path) -> str:
    """The salt of the control prompts that a folder of runs has, so that its runs are found again; or a new one."""
    path = root / SALT
    return path.read_text(encoding="utf-8").strip() if path.is_file() else secrets.token_hex(8)


def keep_salt(root: Path, salt: str) -> None:
    """Write the salt beside the runs that are about to be made with it, unless the folder has one."""
    if salt and not (root / SALT).is_file():
        root.mkdir(parents=True, exist_ok=True)
        (root / SALT).write_text(salt, encoding="utf-8")


def _measured(curve: Curve, cell: Cell, conditions: Sequence[Condition], runner: Runs) -> Curve:
    """A run's curve; the measurement before any attack also has the scores of the LM evaluation harness's tasks."""
    if cell.labels.get("tools") == OWN:
        return replace(curve, config=f"{curve.config} with its own tools")
    for condition in conditions:
        if isinstance(condition, Stability) and curve.data == MEASURE:
            compute = cell.run.compute
            limit = condition.lm_eval_limit
            return with_tasks(curve, cell.run.model, condition.lm_eval, runner.root, compute=compute, limit=limit)
    return curve
