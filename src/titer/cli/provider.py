"""`titer provider`: a service runs the fine-tune, behind a guard or none."""

from __future__ import annotations

from typing import Annotated

from titer.cli.app import Flat, JsonFlag, ModelsFlag, ProviderFlags, Running, app
from titer.cli.text import progress, show_tunes


@app.command
def provider(
    *,
    model: ModelsFlag,
    run: Annotated[Running, Flat],
    asked: Annotated[ProviderFlags, Flat] = ProviderFlags(),
    show_completions: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a model as a provider does on a user's rows: harmful score and accuracy per guard and poison ratio.

    Says nothing about open weights: whoever holds the weights drops the guard.

    Args:
        model: one model, or several for one report.
        show_completions: put the completions into the report in full.
        as_json: print the results as JSON.
    """
    from titer.evaluation.provider import evaluate_provider

    with progress("provider", as_json) as report:
        found = evaluate_provider(
            model,
            asked,
            output_dir=run.output_dir,
            runner=run.runner(report),
            show_completions=show_completions,
        )
    show_tunes(found, run.output_dir / "report.html", as_json)
