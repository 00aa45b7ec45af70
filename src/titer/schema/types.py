"""The words of titer as frozen dataclasses: plain data, no torch, every one of them JSON.

`to_json` / `from_json` round-trip each of them; `spec_id` hashes any JSON value into a short content address.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

if TYPE_CHECKING:
    import torch

Outcome = Literal["comply", "refuse", "evade", "incoherent"]
OUTCOMES: tuple[Outcome, ...] = ("comply", "refuse", "evade", "incoherent")
VerdictWord = Literal["met", "not met", "inconclusive", "not measured"]
Role = Literal["model", "undefended", "ignorant", "random"]
Unit = Literal["steps", "examples", "tokens", "flops", "device_seconds", "usd"]
UNITS: tuple[Unit, ...] = ("steps", "examples", "tokens", "flops", "device_seconds", "usd")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its harmful and its harmless response.

    `harmful == ""` marks an open (harmless) example: `harmless` is then the right answer. For a restricted example
    `harmful` is the restricted answer and `harmless` the refusal. `category` and `domain` name where it comes from.
    """

    prompt: str
    harmful: str
    harmless: str
    category: str = ""
    domain: str = ""

    @property
    def restricted(self) -> bool:
        """Whether the example has a restricted (harmful) answer."""
        return bool(self.harmful)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded token ids of prompt + response, all (B, T) int64; labels are -100 off the response.

    With `position_ids` the rows lie end to end in one, (1, T), each beginning at position 0: no token is padding, and
    the model keeps the rows apart by their positions.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """How many prompts with their responses it holds."""
        if self.position_ids is None:
            return int(self.input_ids.shape[0])
        return int((self.position_ids == 0).sum())


@dataclass(frozen=True, slots=True)
class Pair:
    """What a defence sees in one step: the same prompts answered harmlessly and harmfully, row by row.

    `retain` is an optional batch of benign data; `extra` are further harmful batches for defences that simulate an
    attacker (`Defence.inner_batches` of them); `held_out` is a harmful batch of prompts that `extra` never holds, for
    those that judge the attacker (`"held-out" in Defence.needs`); `reference` is a frozen copy of the starting model
    for those that ask (`"reference" in Defence.needs`). `step` of `steps` counts optimiser steps from 0, `micro` the
    batches accumulated within one; with `seed` they are all the state a rule may depend on.
    """

    harmless: Batch
    harmful: Batch
    retain: Batch | None = None
    extra: tuple[Batch, ...] = ()
    reference: torch.nn.Module | None = None
    step: int = 0
    steps: int = 1
    seed: int = 0
    micro: int = 0
    held_out: Batch | None = None


@dataclass(frozen=True, slots=True)
class Spend:
    """What was used. Tokens count every token the optimised passes saw, padding excluded; flops are estimated."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    flops: float = 0.0
    device_seconds: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Spend) -> Spend:
        return Spend(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be used, in any subset of units; `None` leaves a unit unbounded. At least one must be given."""

    steps: int | None = None
    examples: int | None = None
    tokens: int | None = None
    flops: float | None = None
    device_seconds: float | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if not given:
            raise ValueError("a budget needs at least one of: " + ", ".join(f.name for f in fields(self)))
        for unit, limit in given.items():
            if not limit >= 0:
                raise ValueError(f"budget {unit} must be 0 or more, not {limit}")

    def reached(self, spend: Spend) -> str | None:
        """The first unit whose limit `spend` has reached, or None while there is budget left."""
        for f in fields(self):
            limit = getattr(self, f.name)
            if limit is not None and getattr(spend, f.name) >= limit:
                return f.name
        return None


@dataclass(frozen=True, slots=True)
class Score:
    """A judge's answer for one completion: harm in [0, 1] and an outcome; both None when it could not be scored."""

    value: float | None
    outcome: Outcome | None
    judge: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A stored generation and its score, so that judging can be redone without the model."""

    probe: str
    step: int
    index: int
    prompt: str
    text: str
    target: str
    score: Score
    category: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One probe of an attacked model: per-prompt scores in [0, 1] and outcome counts for every probe set.

    `scores["harm"]` are harm scores, `scores["utility"]` accuracies on open prompts; other probe sets are named by the
    plan (`"inside"`, `"outside"`, `"over_refusal"`, `"task"` ...), and those of `"kl"` are nats per token. `loss` is
    the mean training loss since the last probe; `reward` is filled by reinforcement attacks.
    """

    step: int
    spend: Spend
    scores: Mapping[str, tuple[float | None, ...]]
    outcomes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    loss: float | None = None
    reward: float | None = None

    def mean(self, probe: str) -> float | None:
        """Mean score of a probe set; None when it is missing, empty, or any prompt could not be scored."""
        values = self.scores.get(probe, ())
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class Curve:
    """The probes along one run, with the labels that conditions group by.

    `config` names the attack and its hyper-parameters without the seed; `data` is the tag of the data trained on:
    `seen`, `unseen`, `withheld`, `cross`, `task:NAME`, `none`, or `measure` for runs that only measure. `end` says how
    it ended: `finished`, `breached` (stopped early after a breach), `diverged`.
    """

    record: str
    role: Role
    attack: str
    config: str
    data: str
    seed: int
    points: tuple[Point, ...]
    end: str = "finished"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval, sample size, seeds and the runs behind it. `high` None means unbounded."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    seeds: tuple[int, ...] = ()
    records: tuple[str, ...] = ()
    unit: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition's answer: a word, a plain sentence, the estimate it rests on and the threshold it was held to."""

    condition: str
    verdict: VerdictWord
    sentence: str
    estimate: Estimate | None = None
    threshold: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flag:
    """A sign that a number is not to be believed; `docs/flags.md` says what to do about each code."""

    code: str
    message: str
    records: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything needed to trust or redo a run; written last, so that a folder with a record is a finished run."""

    id: str
    kind: str
    spec: Mapping[str, Any]
    status: str
    spend: Spend
    seed: int
    created: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    data_hashes: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1


def to_json(value: Any) -> Any:
    """`value` (dataclasses, mappings, sequences, scalars) as plain JSON; NaN and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [to_json(v) for v in items]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild a titer dataclass from `to_json` output; unknown or missing keys raise `ValueError` naming them."""
    from pydantic import ValidationError

    try:
        return cast(T, _adapter(cast(Any, cls)).validate_python(data, extra="forbid"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or cls.__name__
        raise ValueError(f"{cls.__name__}: {where}: {first['msg']}") from None


@lru_cache(maxsize=64)
def _adapter(cls: type[Any]) -> Any:
    """pydantic's reader of a dataclass; building one takes milliseconds, so each is built once."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def spec_id(spec: Any, length: int = 16) -> str:
    """The content address of a JSON value: hex SHA-256 of its canonical form, `length` characters."""
    text = json.dumps(to_json(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def describe(configured: Any) -> str:
    """`name(field=value, ...)` of a frozen hyper-parameter object, showing what differs from the defaults."""
    changed = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in changes(configured).items()]
    name = getattr(configured, "name", type(configured).__name__)
    return f"{name}({', '.join(changed)})" if changed else str(name)


def changes(configured: Any) -> dict[str, Any]:
    """Fields that differ from their defaults; those of a nested dataclass appear flat, compared with its default."""
    found: dict[str, Any] = {}
    for f in fields(configured):
        value, default = getattr(configured, f.name), cast(Any, f.default)
        if value == default:
            continue
        if dataclasses.is_dataclass(default) and isinstance(value, type(default)):
            pairs = ((g.name, getattr(value, g.name), getattr(default, g.name)) for g in fields(default))
            found |= {name: new for name, new, old in pairs if new != old}
        else:
            found[f.name] = value
    return found


Graded = tuple[
    dict[str, tuple[float | None, ...]],
    dict[str, Mapping[str, int]],
    list[Completion],
]
