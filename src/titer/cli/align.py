"""`titer align`: teach a model to refuse first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from titer.cli.app import DatasetFlag, Flat, JsonFlag, ModelFlag, app
from titer.cli.text import print_json
from titer.schema.errors import TiterError
from titer.schema.specs import ALIGN, Compute, TrainArgs


@dataclass(frozen=True)
class AlignArgs(TrainArgs):
    """The training loop, as an alignment starts from it."""

    learning_rate: float = ALIGN.learning_rate
    max_steps: int = ALIGN.max_steps
    lr_scheduler_type: str = ALIGN.lr_scheduler_type
    warmup_steps: int = ALIGN.warmup_steps
    lora_r: int = ALIGN.lora_r


@dataclass(frozen=True)
class AlignCompute(Compute):
    """Where and in what precision."""

    dtype: str = "bfloat16"


@app.command
def align(
    *,
    model: ModelFlag,
    output_dir: Path,
    dataset: DatasetFlag = "countries",
    train: Annotated[AlignArgs, Flat] = AlignArgs(),
    compute: Annotated[AlignCompute, Flat] = AlignCompute(),
    seed: int = 0,
    overwrite: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Teach a model to refuse a set's restricted prompts first, where it has no safety to lose yet.

    Args:
        output_dir: the aligned model goes here as a plain model folder.
        dataset: restricted prompts with refusals, and open ones.
        seed: decides every draw.
        overwrite: write over a model that is already there.
        as_json: print what was measured before and after as JSON.
    """
    from titer.campaigns.align import align as run

    if not overwrite and (output_dir / "config.json").exists():
        raise TiterError(f"output_dir {output_dir}: holds a model: choose another folder or pass --overwrite")
    done = run(model, dataset, output_dir, args=train, seed=seed, dtype=compute.dtype, device=compute.device)
    if as_json:
        return print_json(done)
    print(f"before: {done.before}")
    print(f"after:  {done.after}")
    print(f"aligned model: {output_dir}")
