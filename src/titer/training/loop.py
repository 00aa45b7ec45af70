"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from titer.models.shards import average, is_distributed, whole
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Budget, Pair, Spend
from titer.training.checkpoint import Checkpoint
from titer.training.copies import WithCopies, step_finite, updated
from titer.training.meter import Meter
from titer.training.optim import make_optimizer, make_scheduler

Rule = Callable[[nn.Module, Any], Mapping[str, float]]
OnStep = Callable[[int, Mapping[str, float]], bool]


@dataclass(frozen=True, slots=True)
class Ended:
    """How training ended: `finished` (all steps), `budget:UNIT`, `stopped` (by the caller) or `diverged`."""

    reason: str
    steps: int
    logs: Mapping[str, float]


def train(
    model: nn.Module,
    rule: Rule,
    items: Iterable[Any],
    args: TrainArgs,
    *,
    meter: Meter | None = None,
    budget: Budget | None = None,
    on_step: OnStep | None = None,
    seed: int = 0,
    start: int = 0,
    checkpoint: Checkpoint | None = None,
) -> Ended:
    """Train `model` in place by `rule` over `items`, one optimiser step per `gradient_accumulation_steps` of them.

    Stops at the first of `args.max_steps`, the end of the items, the budget, `on_step` returning True, and divergence
    (a loss, gradient or weight that is not finite): the update that would have broken the weights is not made. A
    gradient of any finite size is clipped, not given up on.
    Weights in 16 bits are stepped in float32 (`titer.training.copies`).
    Each step seeds torch from (seed, step), so that dropout and sampled noise do not depend on what ran before. With
    a `checkpoint` that holds a state, training goes on from there and ends with the bits it would have had:
    `on_step` is told the stored logs of the steps before, and their items are skipped.
    """
    meter = meter or Meter()
    accelerator = None if is_distributed(model) else _accelerator(model)
    optimizer = make_optimizer(model, args)
    copies = optimizer if isinstance(optimizer, WithCopies) else None
    scheduler = make_scheduler(optimizer, args)
    prepared: Any
    prepared, optimizer = accelerator.prepare(model, optimizer) if accelerator else (model, optimizer)
    device = next(prepared.parameters()).device.type
    if args.gradient_checkpointing:
        prepared.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared.train()
    logs: dict[str, float] = {}
    past = checkpoint.load(prepared, optimizer, scheduler, meter) if checkpoint else []
    for number, entry in enumerate(past, start=start + 1):
        if on_step:
            on_step(number, entry)
    stream, reason, step = iter(items), "finished", start + len(past)
    seen = len(past) * args.gradient_accumulation_steps
    next(islice(stream, seen, seen), None)  # skips `seen` items and takes none
    autocast = torch.autocast(device, torch.bfloat16) if args.bf16 else nullcontext()
    try:
        while step < args.max_steps:
            unit = budget.reached(meter.spend) if budget else None
            if unit:
                reason = f"budget:{unit}"
                break
            group = list(islice(stream, args.gradient_accumulation_steps))
            if len(group) < args.gradient_accumulation_steps:
                break
            torch.manual_seed((seed * 1_000_003 + step) % 2**63)
            optimizer.zero_grad(set_to_none=True)
            with meter.running(prepared), autocast:
                logs = _accumulate(prepared, rule, group)
                if copies is not None:
                    copies.lift()
                norm = _clip(prepared.parameters() if copies is None else updated(copies), args.max_grad_norm)
                sound = all(map(math.isfinite, (*logs.values(), norm)))
                if sound:
                    sound = _step(optimizer, copies)
                    scheduler.step()
            if not sound:
                reason = "diverged"
                break
            step += 1
            meter.spend += Spend(steps=1, examples=sum(map(_rows, group)))
            past.append({**logs, "grad_norm": norm})
            if on_step and on_step(step, past[-1]):
                reason = "stopped"
                break
            if checkpoint and step < args.max_steps and checkpoint.due(step):
                checkpoint.save(step, prepared, optimizer, scheduler, meter, past)
    finally:
        prepared.eval()
        if args.gradient_checkpointing:
            prepared.gradient_checkpointing_disable()
        prepared.zero_grad(set_to_none=True)
        if accelerator and device != "cpu":  # collects all garbage, which costs 0.3 s and frees nothing on the CPU
            accelerator.free_memory()
    return Ended(reason, step, logs)


def _accelerator(model: nn.Module) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=next(model.parameters()).device.type == "cpu")


def _accumulate(model: nn.Module, rule: Rule, group: Sequence[Any]) -> dict[str, float]:
    """Run the rule on each item of the group; leaves the mean of their gradients, returns the mean of their logs."""
    total: dict[str, float] = {}
    count = len(group)
    for item in group:
        for key, value in rule(model, item).items():
            total[key] = total.get(key, 0.0) + value / count
    average(model.parameters())
    if count > 1:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.div_(count)
    return total


def _rows(item: Batch | Pair) -> int:
    batch = item.harmful if isinstance(item, Pair) else item
    return batch.rows if isinstance(batch, Batch) else int(batch.input_ids.shape[0])  # attacks have items of their own


def _step(optimizer: Any, copies: WithCopies | None) -> bool:
    """Step, unless a weight would not be finite afterwards; whether the step was made."""
    if copies is None:
        return step_finite(optimizer, updated(optimizer))
    optimizer.step()
    return not copies.broken


def _clip(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Clip to `limit` (0: only measure) and return the gradient's norm before clipping."""
    touched = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in touched if p.grad is not None]
    if not grads:
        raise TiterError("training: no gradient reached any parameter: the rule did nothing or all weights are frozen")
    norm = float(whole(nn.utils.get_total_norm(grads)))
    most = _largest(grads) if math.isinf(norm) and limit > 0 else math.inf
    if most < math.inf:  # the squares overflow, the gradients do not
        for g in grads:
            g.div_(most)
        return most * _clip(touched, limit)
    if limit > 0:
        nn.utils.clip_grads_with_norm_(touched, limit, torch.tensor(norm, device=grads[0].device))
    return norm


def _largest(grads: Sequence[torch.Tensor]) -> float:
    """The largest entry in size; not finite where an entry is not."""
    return max(float(whole(g.abs().max())) for g in grads)
