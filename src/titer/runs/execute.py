"""Do one run into its folder, unless it is there."""

from __future__ import annotations

import math
import time
from pathlib import Path

from titer.data.load import load
from titer.models.shards import world
from titer.runs.attack import run_attack
from titer.runs.immunize import run_immunization
from titer.runs.inputs import identify
from titer.runs.locks import Claims
from titer.runs.provenance import environment, now
from titer.runs.store import Progress, Store
from titer.schema.files import RECORD, write_json
from titer.schema.specs import ImmunizeRun, Run, selections
from titer.schema.types import RunRecord, to_json
from titer.training.checkpoint import Checkpoint

SAVE_SECONDS = 60.0


def execute(
    run: Run,
    root: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
    save_seconds: float = SAVE_SECONDS,
) -> RunRecord:
    """Do a run unless its folder is already there; the record of the finished run either way.

    An immunization, and the fine-tune an attack begins with, saves where it stands every `save_seconds` and goes on
    from there when it was killed; one on several processes begins anew.
    """
    store, name, started = Store(root), identify(run), time.perf_counter()
    done = None if overwrite else store.record(name)
    if done is not None:
        return done
    alone = world()[1] == 1
    fence = Claims(store.root).fence(name)
    kept = store.root / "runs" / ".checkpoints" / name
    saved = Checkpoint(kept, seconds=save_seconds if alone else math.inf, ours=fence.holds)
    if overwrite:
        saved.clear()
    with store.writing(name) as folder:
        if isinstance(run, ImmunizeRun):
            finished = run_immunization(run, progress, folder, saved)
        else:
            finished = run_attack(run, progress, folder, saved)
        record = RunRecord(
            id=name,
            kind=run.kind,
            spec=to_json(run),
            status="finished",
            spend=finished.spend,
            seed=run.seed,
            created=now(),
            environment={
                **environment(),
                "processes": world()[1],
                "wall_seconds": round(time.perf_counter() - started, 3),
            },
            data_hashes={role: load(s.dataset).hash for role, s in selections(run).items()},
            result=finished.result,
        )
        write_json(folder / RECORD, record)
    saved.clear()
    return record
