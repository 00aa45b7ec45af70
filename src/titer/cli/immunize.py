"""`titer immunize`: make a defended model."""

from __future__ import annotations

from typing import Annotated

from titer.cli.app import Flat, ImmunizationFlags, JsonFlag, ModelFlag, Running, app
from titer.cli.text import print_json, progress


@app.command
def immunize(
    *,
    model: ModelFlag,
    run: Annotated[Running, Flat],
    asked: Annotated[ImmunizationFlags, Flat] = ImmunizationFlags(),
    as_json: JsonFlag = False,
) -> None:
    """Make a defended model: a plain model folder in --output_dir, with the record of how it was made.

    Args:
        model: hub id, folder, PEFT adapter folder, or embedded name (organism/aligned, smollm2).
        as_json: print the record as JSON.
    """
    from titer.runs import verbs

    with progress("immunize", as_json) as report:
        record = verbs.immunize(model, asked, output_dir=run.output_dir, runner=run.runner(report))
    if as_json:
        return print_json(record)
    last = ", ".join(f"{k} {v:.4g}" for k, v in record.result["last"].items() if k != "step" and v is not None)
    moved = record.result["weight_change"]
    print(f"{record.result['defence']}: {record.result['steps']} steps, weights moved {moved:.2%}")
    print(f"last step: {last}")
    print(f"defended model: {run.output_dir}")
