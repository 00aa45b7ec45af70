"""What an evaluation will cost before it is run: runs, steps, tokens, FLOPs, time, memory and disk.

Time comes from a short measured probe (a few attack steps and one grading of the very model on this machine), counts
from the plan itself. Early stops at a breach make a run shorter than planned: the estimate is an upper bound on steps.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titer.evaluation.cases import cells_of, conditions_of, examined
from titer.runs.runner import Runner
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.evaluation import Case
from titer.schema.files import RECORD
from titer.schema.specs import AttackRun, Cell
from titer.schema.suite import Suite
from titer.schema.types import Budget, RunRecord, from_json, spec_id

PROBE_STEPS = 3
WORKER_START_SECONDS = 8.0  # importing torch and transformers, and loading a small model, once per worker
BYTES_A_COMPLETION = 450


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimate of an evaluation: upper bounds on steps and time; memory is per worker."""

    runs: int
    steps: int
    probes: int
    tokens: int
    flops: float
    seconds: float
    workers: int
    memory_bytes: int
    disk_bytes: int
    seconds_a_step: float
    seconds_a_probe: float


@dataclass(frozen=True, slots=True)
class Count:
    """What an evaluation asks for, known without running anything; finished runs count too."""

    runs: int
    steps: int
    probes: int


def count(cases: Sequence[Case]) -> Count:
    """Runs (equal ones once), steps and probes of an evaluation, steps at most."""
    runs = _planned(cases)
    return Count(len(runs), sum(map(_steps, runs)), sum(map(_probes, runs)))


def count_words(c: Count, suite: Suite) -> str:
    """The counts as a line for a terminal."""
    return f"suite {suite.name} ({suite.hash}): {c.runs} runs, at most {c.steps} steps, {c.probes} probes"


def _planned(cases: Sequence[Case]) -> list[AttackRun]:
    found = (cell.run for case in cases for cell in cells_of(examined(case), conditions_of(case.asked)))
    return list({spec_id(run): run for run in found if isinstance(run, AttackRun)}.values())


def cost_of(cases: Sequence[Case], scratch: Path, *, workers: int = 1) -> Cost:
    """What evaluating the cases costs; `scratch` is a folder for the measured probe.

    Raises `TiterError` when memory or disk will not do, with what would.
    """
    runs = _planned(cases)
    attacks = [r for r in runs if r.attack.name != "none"]
    if not attacks:
        raise TiterError("plan: no attack is asked for: choose resistance, generalization or trainability")
    record, took = _measured(_probe_run(attacks[0]), scratch)
    a_step = record.spend.device_seconds / PROBE_STEPS
    a_probe = max(took - record.spend.device_seconds, 0.0) / 2
    steps = sum(_steps(r) for r in attacks)
    probes = sum(map(_probes, runs))
    cost = Cost(
        runs=len(runs),
        steps=steps,
        probes=probes,
        tokens=int(record.spend.tokens / PROBE_STEPS * steps),
        flops=record.spend.flops / PROBE_STEPS * steps,
        seconds=(steps * a_step + probes * a_probe) / workers + WORKER_START_SECONDS,
        workers=workers,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        disk_bytes=_disk(runs),
        seconds_a_step=a_step,
        seconds_a_probe=a_probe,
    )
    _refuse_unfit(cost, Path(scratch))
    return cost


def _measured(run: AttackRun, scratch: str | Path) -> tuple[RunRecord, float]:
    """The short run's record and wall time, once everything it loads and imports has been loaded by a first one."""
    cells = [Cell(run, {})]
    Runner(Path(scratch)).do(cells)
    started = time.perf_counter()
    record = Runner(Path(scratch), overwrite=True).records(cells)[0]
    return record, time.perf_counter() - started


def _probe_run(run: AttackRun) -> AttackRun:
    return replace(run, budget=Budget(steps=PROBE_STEPS), plan=(0, PROBE_STEPS))


def _steps(run: AttackRun) -> int:
    return run.budget.steps or 0


def _probes(run: AttackRun) -> int:
    return sum(s <= _steps(run) for s in run.plan)


def _disk(runs: Sequence[AttackRun]) -> int:
    """Bytes of completions and curves; attacked weights are not kept."""
    prompts = sum((p.selection.n or 100) * (len(p.at) or _probes(r)) for r in runs for p in r.probes)
    return prompts * BYTES_A_COMPLETION


def _refuse_unfit(cost: Cost, folder: Path) -> None:
    import psutil

    available, needed = psutil.virtual_memory().available, cost.memory_bytes * cost.workers
    if needed > available:
        fits = max(int(available // cost.memory_bytes), 0)
        raise TiterError(
            f"plan: {cost.workers} workers need {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} are free: "
            + (f"pass --workers {fits}" if fits else "use a smaller model, --dtype bfloat16 or a larger machine")
        )
    free = shutil.disk_usage(folder).free
    if cost.disk_bytes > free:
        raise TiterError(f"plan: {cost.disk_bytes / 2**30:.1f} GiB of disk needed, {free / 2**30:.1f} free: free some")


@dataclass(frozen=True, slots=True)
class Past:
    """Finished attacks on the planned models: how long they took and how long a plan would have said at most."""

    runs: int
    took: float
    planned: float


def past(output_dir: str | Path, models: Collection[str], cost: Cost) -> Past:
    """The estimate's error on the attacks already under `output_dir`, at the speed measured now, run by run."""
    took, planned, runs = 0.0, 0.0, 0
    store = Store(output_dir)
    for folder in sorted(p.parent for p in (store.root / "runs").glob(f"[!.]*/{RECORD}")):
        record = store.record(folder.name)
        if record is None or record.kind != "attack" or record.spec["model"] not in models:
            continue
        run = from_json(AttackRun, record.spec)
        if run.attack.name != "none":
            runs += 1
            took += float(record.environment["wall_seconds"])
            planned += _steps(run) * cost.seconds_a_step + _probes(run) * cost.seconds_a_probe
    return Past(runs, took, planned)


def past_words(found: Past) -> list[str]:
    """One line on past runs, or none without any."""
    if not found.runs:
        return []
    return [
        f"past runs: {found.runs} finished attacks on these models took {found.took:.0f} s; a plan now says at most "
        f"{found.planned:.0f} s for them, {found.planned / max(found.took, 0.001):.1f} times as long"
    ]


def words(cost: Cost, suite: Suite) -> str:
    """The estimate as lines for a terminal."""
    return "\n".join(
        (
            count_words(Count(cost.runs, cost.steps, cost.probes), suite),
            f"time: at most {cost.seconds / 60:.1f} minutes with {cost.workers} worker(s) "
            f"({cost.seconds_a_step:.3f} s a step, {cost.seconds_a_probe:.2f} s a probe, measured now)",
            f"tokens: {cost.tokens:,}; FLOPs: {cost.flops:.3g}",
            f"memory: {cost.memory_bytes / 2**30:.1f} GiB a worker; disk: {cost.disk_bytes / 2**20:.0f} MiB",
        )
    )
