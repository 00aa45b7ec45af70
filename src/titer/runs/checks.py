"""What a run on several processes, or in few bits, cannot do: refused before it starts."""

from __future__ import annotations

from titer.attacks import ATTACKS
from titer.defences import DEFENCES
from titer.models.quantize import bitsandbytes
from titer.schema.errors import TiterError
from titer.schema.registry import Kind
from titer.schema.specs import ADAMW_8BIT, AttackRun, ImmunizeRun, Run

OPTIMIZERS = ("adamw", "sgd", "nesterov")


def check_run(run: Run) -> None:
    """Refuse, in one line, a run that cannot be done on the several processes, or in the few bits, it asks for."""
    if run.compute.accelerate_config:
        _check_shared(run)
    check_bits(run)


def _check_shared(run: Run) -> None:
    where = f"accelerate_config {run.compute.accelerate_config}"
    known = DEFENCES if isinstance(run, ImmunizeRun) else ATTACKS
    chosen = run.defence if isinstance(run, ImmunizeRun) else run.attack
    for name in chosen.name.split("+"):
        if ":" not in name and name not in (able := sharded(known)):
            raise TiterError(
                f"{where}: {name} works on one process only: leave it out or choose from {', '.join(able)}"
            )
    if run.compute.load_in_4bit:
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


def sharded(kind: Kind) -> list[str]:
    """The members of a kind that say `shards`: each gives on several processes what it gives on one."""
    return [name for name, member in kind.items() if getattr(member, "shards", False)]


def check_bits(run: Run) -> None:
    """Refuse, in one line, what cannot be done in few bits or without the extra."""
    chosen = run.defence if isinstance(run, ImmunizeRun) else run.attack
    trained = run.train if isinstance(run, ImmunizeRun) else None
    if ADAMW_8BIT in (trained.optim if trained else "", chosen.options.get("optim")):
        bitsandbytes(f"optim {ADAMW_8BIT}")
    if not run.compute.load_in_4bit:
        return
    if run.model.startswith("random:") or run.model == "organism/random":
        raise TiterError(f"load_in_4bit: {run.model} has no weights to quantise: leave it out")
    if isinstance(run, ImmunizeRun) and run.train.lora_r == 0:
        raise TiterError("load_in_4bit: a 4-bit model is frozen, only an adapter trains: pass --lora_r 16")
    if isinstance(run, AttackRun) and run.attack.name not in ("lora", "none") and not run.attack.options.get("lora_r"):
        raise TiterError(
            "load_in_4bit: a 4-bit model is frozen, only an adapter trains: use lora, or --attack_args.lora_r 16"
        )
    bitsandbytes("load_in_4bit")
