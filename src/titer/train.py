"""THE training loop (on accelerate): alignment, defences, attacks and trainability all go through `train`.

A *rule* turns one item (a batch, a pair) into gradients; the loop owns everything else: order of the data, clipping,
optimiser, schedule, metering, budget, divergence and the hooks for probes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn

from titer.bits import ADAMW_8BIT, adamw_8bit
from titer.checkpoint import Checkpoint
from titer.errors import TiterError, unknown
from titer.meter import Meter
from titer.sharding import average, is_distributed, whole
from titer.specs import TrainArgs
from titer.types import Batch, Budget, Pair, Spend

DIVERGED_NORM = 1e6
Rule = Callable[[nn.Module, Any], Mapping[str, float]]
OnStep = Callable[[int, Mapping[str, float]], bool]


@dataclass(frozen=True, slots=True)
class Ended:
    """How training ended: `finished` (all steps), `budget:UNIT`, `stopped` (by the caller) or `diverged`."""

    reason: str
    steps: int
    logs: Mapping[str, float]


class HasState(Protocol):
    """An optimiser or scheduler: something that steps."""

    def step(self) -> Any:
        """Advance by one."""


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the response tokens of a batch; a scalar with gradient, in float32."""
    kept = batch.labels[:, 1:] != -100
    if batch.position_ids is None:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    else:  # without a mask the model reads from the positions where a row begins
        output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    hidden_logits = output.logits[:, :-1]
    return nn.functional.cross_entropy(hidden_logits[kept].float(), batch.labels[:, 1:][kept])


def sft_rule(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Ordinary supervised fine-tuning: descend the response tokens' cross-entropy."""
    loss = cross_entropy(model, batch)
    loss.backward()
    return {"loss": float(loss.detach())}


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
    (a loss or gradient that is not finite, or a gradient norm beyond 1e6): the update that would have broken the
    weights is not made.
    Each step seeds torch from (seed, step), so that dropout and sampled noise do not depend on what ran before. With
    a `checkpoint` that holds a state, training goes on from there and ends with the bits it would have had:
    `on_step` is told the stored logs of the steps before, and their items are skipped.
    """
    meter = meter or Meter()
    accelerator = None if is_distributed(model) else _accelerator(model)
    optimizer = make_optimizer(model, args)
    scheduler = _scheduler(optimizer, args)
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
                norm = _clip(prepared, args.max_grad_norm)
                sound = all(map(math.isfinite, (*logs.values(), norm))) and norm < DIVERGED_NORM
                if sound:
                    optimizer.step()
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


def _clip(model: nn.Module, limit: float) -> float:
    """Clip to `limit` (0: only measure) and return the gradient's norm before clipping."""
    grads = [p for p in model.parameters() if p.grad is not None]
    if not grads:
        raise TiterError("training: no gradient reached any parameter: the rule did nothing or all weights are frozen")
    norm = nn.utils.clip_grad_norm_(grads, limit if limit > 0 else math.inf)
    return float(whole(norm))


# -------------------------------------------------------------------------------------------------- optimiser, LoRA

OPTIMIZERS = ("adamw", "sgd", "nesterov", "adafactor", "rmsprop", "adagrad")  # and `ADAMW_8BIT`, with an extra


def make_optimizer(model: nn.Module, args: TrainArgs) -> torch.optim.Optimizer:
    """The optimiser named by `args.optim` over the trainable parameters."""
    params = [p for p in model.parameters() if p.requires_grad]
    lr, decay = args.learning_rate, args.weight_decay
    match args.optim:
        case "adamw":
            return torch.optim.AdamW(params, lr=lr, weight_decay=decay, foreach=True)
        case "sgd":
            return torch.optim.SGD(params, lr=lr, weight_decay=decay)
        case "nesterov":
            return torch.optim.SGD(params, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True)
        case "adafactor":
            return torch.optim.Adafactor(params, lr=lr, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(params, lr=lr, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(params, lr=lr, weight_decay=decay)
        case "adamw_8bit":
            return adamw_8bit(params, lr, decay)
    raise unknown("optimiser", args.optim, (*OPTIMIZERS, ADAMW_8BIT))


SCHEDULES = ("constant", "cosine", "linear")


def _scheduler(optimizer: torch.optim.Optimizer, args: TrainArgs) -> HasState:
    from transformers import get_scheduler

    if args.lr_scheduler_type not in SCHEDULES:
        raise unknown("lr_scheduler_type", args.lr_scheduler_type, SCHEDULES)
    kind = "constant_with_warmup" if args.lr_scheduler_type == "constant" else args.lr_scheduler_type
    steps = max(args.max_steps, 1)
    schedule: HasState = get_scheduler(kind, optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=steps)
    return schedule


def with_lora(model: Any, args: TrainArgs, seed: int = 0) -> Any:
    """A fresh LoRA adapter on `model` (`args.lora_r` > 0), its weights drawn from `seed`; else the model itself."""
    if args.lora_r <= 0:
        return model
    from peft import LoraConfig, get_peft_model

    targets = args.lora_target_modules
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers has deprecated
        torch.manual_seed(seed)
        return get_peft_model(model, config)
