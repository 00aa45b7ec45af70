"""`titer evaluate`: the immunization conditions of a model whose weights the attacker holds."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

from titer.cli.app import EvaluationFlags, Flat, JsonFlag, ModelsFlag, Running, app
from titer.cli.text import print_json, progress, show_results


@app.command
def evaluate(
    *,
    model: ModelsFlag,
    run: Annotated[Running, Flat],
    asked: Annotated[EvaluationFlags, Flat] = EvaluationFlags(),
    show_completions: bool = False,
    dry_run: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Attack a model and its reference with a suite, judge the conditions, write results.json and report.html.

    Args:
        model: one model, or several for one report.
        show_completions: put the completions into the report in full.
        dry_run: say what the evaluation would cost, and run none of it.
        as_json: print the results (or the cost) as JSON.
    """
    if dry_run:
        return _say_cost(model, run, asked, as_json)
    from titer.evaluation.evaluate import evaluate as do

    with progress("evaluate", as_json) as report:
        found = do(
            model,
            asked,
            output_dir=run.output_dir,
            runner=run.runner(report),
            show_completions=show_completions,
            announce=lambda cost: print(cost, file=sys.stderr),
        )
    show_results(found, run.output_dir / "report.html", as_json)


def _say_cost(model: tuple[str, ...], run: Running, asked: EvaluationFlags, as_json: bool) -> None:
    from titer.evaluation.cases import cases
    from titer.evaluation.cost import cost_of, past, past_words, words

    found = cases(model, asked)
    with tempfile.TemporaryDirectory(prefix="titer-cost-") as scratch:
        cost = cost_of(found, Path(scratch), workers=run.workers)
    if as_json:
        return print_json(cost)
    models = {m for case in found for m in (case.model, case.reference, *case.controls.values())}
    print("\n".join([words(cost, found[0].suite), *past_words(past(run.output_dir, models, cost))]))
