"""`titer thin`: a data set without near duplicates, so that its splits can be told apart."""

from __future__ import annotations

from pathlib import Path

from titer.cli.app import DatasetFlag, app


@app.command
def thin(*, dataset: DatasetFlag, output: Path) -> None:
    """Write a data set as JSONL without prompts that nearly repeat another one.

    Args:
        dataset: a file, a hub id or a published set, as for the other commands.
        output: the .jsonl file to write.
    """
    from titer.data.audit import thin as without
    from titer.data.load import load, save_jsonl
    from titer.schema.errors import TiterError

    if output.suffix != ".jsonl":
        raise TiterError(f"output {output}: must end in .jsonl, so that titer can read it back")
    examples = load(dataset).examples
    kept = without(examples)
    save_jsonl(kept, output)
    print(f"{len(kept)} of {len(examples)} rows kept: {output}")
