"""Search spaces: what of an attack may vary and how, in four words; `titer.campaigns.search` maps them to Optuna's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values, without order."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Uniform:
    """A number in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LogUniform:
    """A positive number in [low, high], uniform in its logarithm."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number in [low, high]; `log` spaces it by its logarithm."""

    low: int
    high: int
    log: bool = False


Knob = Choice | Uniform | LogUniform | Whole
Space = Mapping[str, Knob]
Options = Mapping[str, Any]

RATE = LogUniform(1e-5, 1e-2)
SCHEDULE: Space = {
    "lr_scheduler_type": Choice(("constant", "cosine", "linear")),
    "warmup_steps": Choice((0, 30, 100)),
}
TRAIN: Space = {
    "learning_rate": RATE,
    "optim": Choice(("adamw", "adafactor", "rmsprop", "adagrad")),
    "per_device_train_batch_size": Choice((4, 16, 64)),
    **SCHEDULE,
}
TUNE_AFTER: Space = {"then_sft": Choice((False, True)), "learning_rate": RATE}


def within(space: Space, options: Options) -> bool:
    """Whether every option is a knob of the space and inside its range."""
    return all(name in space and _inside(space[name], value) for name, value in options.items())


def _inside(knob: Knob, value: Any) -> bool:
    if isinstance(knob, Choice):
        return value in knob.values
    return bool(knob.low <= value <= knob.high)
