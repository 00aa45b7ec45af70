"""`titer export`: a stored result in the formats of other people's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from titer.cli.app import app

Format = Literal["inspect", "eee", "jsonl"]
NAMES = {"inspect": "inspect.json", "eee": "every_eval_ever", "jsonl": "instances.jsonl"}


@app.command
def export(result: Path, *, format: Format, output: Path | None = None, show_completions: bool = False) -> None:
    """Write a result as an Inspect log, as Every Eval Ever records, or as JSON lines of its completions.

    Args:
        result: results.json or its folder.
        format: inspect (extra `inspect`), eee (aggregate and instances) or jsonl (instances alone).
        output: the file to write, for eee the folder; default beside the result.
        show_completions: keep the texts; without it each is its length and hash.
    """
    from titer.integrations import every_eval_ever, inspect, jsonl
    from titer.integrations.stored import stored

    found = stored(result, show=show_completions)
    target = output or found.store.root / NAMES[format]
    write = {"inspect": inspect.write, "eee": every_eval_ever.write, "jsonl": jsonl.write}[format]
    for path in write(found, target):
        print(f"{format}: {path}")
