"""A run on several processes of this machine: `accelerate_config` is `fsdp2`, `multi_gpu` or an accelerate YAML file.

`fsdp2` keeps shards of weights, gradients and optimiser state on every accelerator, `multi_gpu` all of them on each;
see `titer.sharding` for how. The batch of a step is that of the spec, whatever the number of processes: the rows are
shared out, and the result is that of one process up to rounding. One process that is lost ends the run.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

from titer.bits import check_bits
from titer.errors import TiterError, unknown
from titer.executors import follow_parent
from titer.sharding import Kind
from titer.specs import AttackRun, ImmunizeRun, Run
from titer.store import Store, scratch_beside
from titer.types import RunRecord

PATIENCE = timedelta(hours=2)  # how long processes wait for each other: a slow judge is asked by the first alone
FROM_ACCELERATE = {"FSDP": "fsdp2", "MULTI_GPU": "multi_gpu", "MULTI_CPU": "multi_gpu"}
# each of them gives on two processes what it gives on one: tests/defences/test_two_processes.py
DEFENCES = frozenset({
    "safety-sft", "gradient-ascent", "adversarial-loss", "repnoise", "booster", "tar", "mlac", "seam", "ctrap",
    "triplet", "circuit-breakers", "deep-alignment", "sdd", "extended-refusal",
})  # fmt: skip
ATTACKS = frozenset({
    "none", "sft", "sgd", "few-shot", "mixed", "benign", "benign-then-harmful", "identity-shift",
    "jailbreak-tuning", "prefill", "retain-then-harmful",
})  # fmt: skip
OPTIMIZERS = ("adamw", "sgd", "nesterov")


@dataclass(frozen=True)
class Layout:
    """How weights are held, and by how many processes."""

    kind: Kind
    processes: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.processes}"


def layout(config: str, device: str = "cpu") -> Layout | None:
    """The layout that `--accelerate_config` names; None for "" and for a single process.

    `fsdp2` and `multi_gpu` take one process per accelerator; `:N` says how many. Raises `TiterError` for what is none
    of these, and for a file that asks for what titer does not do.
    """
    if not config:
        return None
    if Path(config).suffix in (".yaml", ".yml", ".json") or os.sep in config:
        kind, count = _from_file(Path(config))
    else:
        kind, _, number = config.partition(":")
        if number and not number.isdigit():
            raise TiterError(f"accelerate_config {config}: {number!r} is no number of processes: write {kind}:2")
        count = int(number) if number else 0
    if kind not in get_args(Kind):
        raise unknown("accelerate_config", kind, [*get_args(Kind), "an accelerate file.yaml"])
    count = count or _accelerators(config, device)
    return Layout(kind, count) if count > 1 else None  # type: ignore[arg-type]


def _from_file(path: Path) -> tuple[str, int]:
    """Layout and number of processes of a file written by `accelerate config`."""
    import yaml

    if not path.is_file():
        raise TiterError(f"accelerate_config {path}: no such file: pass fsdp2, multi_gpu or an existing file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise TiterError(f"accelerate_config {path}: not a file of `accelerate config`")
    kind = str(found.get("distributed_type", "NO"))
    if int(found.get("num_machines", 1)) > 1:
        raise TiterError(f"accelerate_config {path}: num_machines: a run is done on one machine: set it to 1")
    if str(found.get("mixed_precision", "no")) not in ("no", "False"):
        raise TiterError(f"accelerate_config {path}: mixed_precision: set it to 'no' and pass --bf16 instead")
    if kind == "FSDP" and int((found.get("fsdp_config") or {}).get("fsdp_version", 1)) != 2:
        raise TiterError(f"accelerate_config {path}: fsdp_config: set fsdp_version to 2")
    if kind not in (*FROM_ACCELERATE, "NO"):
        raise TiterError(f"accelerate_config {path}: distributed_type {kind}: use FSDP, MULTI_GPU or MULTI_CPU")
    return FROM_ACCELERATE.get(kind, "multi_gpu"), 1 if kind == "NO" else int(found.get("num_processes", 0))


def _accelerators(config: str, device: str) -> int:
    import torch

    if device.startswith("cpu"):
        raise TiterError(f"accelerate_config {config}: on the CPU say how many processes: write {config}:2")
    return torch.cuda.device_count()


def canonical(config: str, device: str = "cpu") -> str:
    """`accelerate_config` as specs hold it: `kind:processes`, "" for one process."""
    return str(layout(config, device) or "")


def check_run(run: Run) -> None:
    """Refuse, in one line, a run that cannot be done on the several processes, or in the few bits, it asks for."""
    if run.accelerate_config:
        _check_shared(run)
    check_bits(run)


def _check_shared(run: Run) -> None:
    where = f"accelerate_config {run.accelerate_config}"
    known = DEFENCES if isinstance(run, ImmunizeRun) else ATTACKS
    chosen = run.defence if isinstance(run, ImmunizeRun) else run.attack
    for name in chosen.name.split("+"):
        if name not in known and ":" not in name:
            raise TiterError(f"{where}: {name} works on one process only: leave it out or choose from {_names(known)}")
    if run.load_in_4bit:
        raise TiterError(f"{where}: cannot be combined with load_in_4bit: leave one of them out")
    if run.train.lora_r if isinstance(run, ImmunizeRun) else run.attack.options.get("lora_r"):
        raise TiterError(f"{where}: adapters work on one process only: leave out lora_r")
    if isinstance(run, AttackRun) and run.budget.device_seconds is not None:
        raise TiterError(
            f"{where}: budget.device_seconds: processes' clocks differ: give the budget in steps or tokens"
        )
    optim = run.train.optim if isinstance(run, ImmunizeRun) else run.attack.options.get("optim", "adamw")
    if optim not in OPTIMIZERS:
        raise TiterError(f"{where}: optimiser {optim} does not work on shards: use one of {', '.join(OPTIMIZERS)}")


def _names(known: frozenset[str]) -> str:
    return ", ".join(sorted(known))


# -------------------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True)
class _Job:
    run: Run
    root: str
    overwrite: bool
    save_seconds: float
    layout: Layout
    scratch: str
    threads: int


def execute(run: Run, root: str | Path, *, overwrite: bool, save_seconds: float) -> RunRecord:
    """Do a run on the processes its layout asks for; the record that the first one has written."""
    found = layout(run.accelerate_config, run.device)
    assert found is not None
    check_run(run)
    _check_devices(run, found)
    threads = max(1, (os.cpu_count() or 1) // found.processes)
    with _scratch(Path(root)) as scratch:
        ids = _done_by_all(_Job(run, str(root), overwrite, save_seconds, found, str(scratch), threads))
    return Store(root).finished(ids)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder beside the runs where the processes meet, and where what only the first should write ends."""
    folder = scratch_beside(root / "runs" / "processes")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise TiterError(f"{root}: cannot be written: {error.strerror}: choose another folder") from None
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_devices(run: Run, found: Layout) -> None:
    if run.device.startswith("cpu"):
        return
    import torch

    if torch.cuda.device_count() < found.processes:
        raise TiterError(
            f"accelerate_config {found}: {torch.cuda.device_count()} accelerators here, {found.processes} are needed"
        )


def _done_by_all(job: _Job) -> str:
    """Start the processes, wait for the first, and stop all as soon as one of them fails; the run's id."""
    context = multiprocessing.get_context("spawn")
    crew: list[tuple[Any, Connection]] = []
    try:
        for rank in range(job.layout.processes):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_process, args=(job, rank, sender), daemon=True)
            process.start()
            sender.close()
            crew.append((process, receiver))
        return _watched(crew)
    finally:
        for process, _ in crew:
            process.terminate()
        for process, _ in crew:
            process.join()


def _watched(crew: list[tuple[Any, Connection]]) -> str:
    said: dict[int, str] = {}
    while len(said) < len(crew):
        for rank, (process, receiver) in enumerate(crew):
            alive = process.is_alive()
            if rank in said or not receiver.poll(0.05):
                if rank not in said and not alive:
                    raise _killed(rank)
                continue
            said[rank] = _answer(rank, receiver)
    return said[0]


def _answer(rank: int, receiver: Connection) -> str:
    try:
        fine, text = receiver.recv()
    except EOFError:
        raise _killed(rank) from None
    if not fine:
        raise TiterError(text)
    return str(text)


def _killed(rank: int) -> TiterError:
    return TiterError(f"process {rank} was killed, usually for want of memory: use more accelerators")


def _process(job: _Job, rank: int, sender: Connection) -> None:
    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        sender.send((True, _rank(job, rank)))
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    except Exception as error:
        told = isinstance(error, TiterError)
        if rank > 0 and not told:
            time.sleep(5)  # it may only have lost the process that has something to say
        sender.send((False, str(error) if told else f"process {rank}: {type(error).__name__}: {error}"))


def _rank(job: _Job, rank: int) -> str:
    """One of the processes: all do the same run, and what others than the first write is thrown away."""
    import torch
    from torch import distributed

    from titer.harness import execute as do

    torch.set_num_threads(job.threads)
    cpu = job.run.device.startswith("cpu")
    if not cpu:
        torch.cuda.set_device(rank)
    meet = f"file://{Path(job.scratch) / 'meet'}"
    backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend, init_method=meet, rank=rank, world_size=job.layout.processes, timeout=PATIENCE
    )
    try:
        root = job.root if rank == 0 else str(Path(job.scratch) / str(rank))
        return do(job.run, root, overwrite=job.overwrite, save_seconds=job.save_seconds).id
    finally:
        distributed.destroy_process_group()
