"""`titer mechanism`: why a defence holds, or does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from titer.cli.app import DataFlags, Flat, JsonFlag, ModelFlag, app, explained
from titer.cli.text import print_json
from titer.schema.evaluation import Grading
from titer.schema.mechanism import Mechanism
from titer.schema.specs import Compute


@explained
@dataclass(frozen=True)
class MechanismFlags(Mechanism):
    """Laid flat."""

    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    grading: Annotated[Grading, Flat] = field(default_factory=Grading)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@app.command
def mechanism(
    *,
    model: ModelFlag,
    asked: Annotated[MechanismFlags, Flat],
    output_dir: Path,
    overwrite: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a defence changed, layer by layer: weights, logit lens, probes, geometry, depth, tone and completion.

    Args:
        model: hub id, folder, PEFT adapter folder, or embedded name.
        output_dir: mechanism.json and mechanism.html go here; the same question is not measured twice.
        overwrite: measure again what is already there.
        as_json: print what was found as JSON.
    """
    from titer.mechanism.examine import PAGE, examine
    from titer.mechanism.summary import sentences

    found = examine(model, asked, output_dir=output_dir, overwrite=overwrite)
    if as_json:
        return print_json(found)
    for said in sentences(found):
        print(said)
    print(f"report: {output_dir / PAGE}")
