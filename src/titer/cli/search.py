"""`titer search`: the adaptive attacker."""

from __future__ import annotations

import sys
from typing import Annotated

from titer.cli.app import Flat, JsonFlag, ModelFlag, Running, SearchFlags, app
from titer.cli.text import print_json, progress


@app.command
def search(
    *,
    model: ModelFlag,
    run: Annotated[Running, Flat],
    asked: Annotated[SearchFlags, Flat] = SearchFlags(),
    as_json: JsonFlag = False,
) -> None:
    """Let an adaptive attacker look for the cheapest breach, and price both the breach and the search.

    Args:
        model: hub id, folder, PEFT adapter folder, or embedded name.
        as_json: print what was found as JSON.
    """
    from titer.campaigns.search.search import search_model, summary_of, words
    from titer.campaigns.search.trials import Trial

    def on_trial(trial: Trial) -> None:
        if not as_json:
            print(summary_of(trial), file=sys.stderr)

    with progress("search", silent=True) as report:
        runner = run.runner(report)
        found = search_model(model, asked, output_dir=run.output_dir, runner=runner, on_trial=on_trial)
    if as_json:
        return print_json(found)
    print(words(found, getattr(asked.budget, asked.unit) or 0))
    print(f"search: {run.output_dir / 'search.json'}")
