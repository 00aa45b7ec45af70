"""`titer attack`: attack a model under a budget."""

from __future__ import annotations

from typing import Annotated

from titer.cli.app import AttemptFlags, Flat, JsonFlag, ModelFlag, Running, app
from titer.cli.text import print_json, progress, show_curves


@app.command
def attack(
    *,
    model: ModelFlag,
    run: Annotated[Running, Flat],
    asked: Annotated[AttemptFlags, Flat] = AttemptFlags(),
    as_json: JsonFlag = False,
) -> None:
    """Attack a model under a budget, once per seed, and print harm and utility along the way.

    Args:
        model: hub id, folder, PEFT adapter folder, or embedded name.
        as_json: print records and curves as JSON.
    """
    from titer.runs import verbs

    with progress("attack", as_json) as report:
        done = verbs.attack(model, asked, output_dir=run.output_dir, runner=run.runner(report))
    if as_json:
        return print_json({"records": done.records, "curves": done.curves})
    show_curves(done)
    print(f"runs: {run.output_dir / 'runs'}")
