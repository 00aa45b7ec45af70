"""Optimisers and schedules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from titer.models.quantize import bitsandbytes
from titer.schema.errors import unknown
from titer.schema.specs import ADAMW_8BIT, TrainArgs
from titer.training.copies import with_copies


def adamw_8bit(params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW whose two moments take a byte a weight (Dettmers et al., ICLR 2022, arXiv 2110.02861)."""
    library = bitsandbytes(f"optim {ADAMW_8BIT}")
    found: torch.optim.Optimizer = library.optim.AdamW8bit(params, lr=lr, weight_decay=weight_decay)
    return found


class HasState(Protocol):
    """An optimiser or scheduler: something that steps."""

    def step(self) -> Any:
        """Advance by one."""


# and `ADAMW_8BIT`, with an extra
OPTIMIZERS = ("adamw", "sgd", "nesterov", "adafactor", "rmsprop", "adagrad", "adamw_relative", "muon")


def make_optimizer(model: nn.Module, args: TrainArgs) -> torch.optim.Optimizer:
    """The optimiser named by `args.optim` over the trainable parameters, those in 16 bits through float32 copies."""
    return with_copies(plain_optimizer(model, args))


SCHEDULES = ("constant", "cosine", "linear")


def schedule_name(args: TrainArgs) -> str:
    """What transformers calls the schedule; `TiterError` for one that is none of `SCHEDULES`."""
    if args.lr_scheduler_type not in SCHEDULES:
        raise unknown("lr_scheduler_type", args.lr_scheduler_type, SCHEDULES)
    return "constant_with_warmup" if args.lr_scheduler_type == "constant" else args.lr_scheduler_type


def make_scheduler(optimizer: torch.optim.Optimizer, args: TrainArgs) -> HasState:
    """The learning rate's schedule over the steps of an optimiser."""
    from transformers import get_scheduler

    kind = schedule_name(args)
    steps = max(args.max_steps, 1)
    schedule: HasState = get_scheduler(kind, optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=steps)
    return schedule


def plain_optimizer(model: nn.Module, args: TrainArgs) -> torch.optim.Optimizer:
    """The optimiser by name, over every weight that takes gradient; `TiterError` for an unknown name.

    `adamw_relative` and `muon` do not see the scale of a weight or of its gradient: the learning rate is a share of
    each matrix's root mean square at the start. `muon` (Jordan 2024) trains matrices alone.
    """
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
        case "adamw_relative":
            return torch.optim.AdamW(relative(params, lr), lr=lr, weight_decay=decay, eps=1e-30)
        case "muon":
            matrices = relative([p for p in params if p.dim() == 2], lr)
            return torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        case "adamw_8bit":
            return adamw_8bit(params, lr, decay)
    raise unknown("optimiser", args.optim, (*OPTIMIZERS, ADAMW_8BIT))


def relative(params: Sequence[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """A parameter group each, with `lr` times its root mean square now; `lr` itself where that is 0 (as in LAMB)."""
    sizes = [float(p.detach().float().square().mean().sqrt()) for p in params]
    return [{"params": [p], "lr": lr * (size or 1.0)} for p, size in zip(params, sizes, strict=True)]
