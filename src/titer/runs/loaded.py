"""Models as runs need them, kept between runs that share one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from titer.models.load import load_model, resolve
from titer.models.shards import distribute
from titer.models.weights import Snapshot, fingerprint, restore, snapshot
from titer.runs.inputs import reference
from titer.runs.layout import layout as layout_of
from titer.schema.specs import AttackRun, Run


@dataclass
class _Loaded:
    model: Any
    tokenizer: Any
    saved: Snapshot


@lru_cache(maxsize=2)
def _loaded(content: str, name: str, how: How) -> _Loaded:
    model, tokenizer = placed_model(name, how)
    return _Loaded(model, tokenizer, snapshot(model))


@dataclass(frozen=True)
class How:
    """How a run has its models."""

    dtype: str
    device: str
    accelerate_config: str
    load_in_4bit: bool
    seed: int = 0

    @classmethod
    def of(cls, run: Run, seed: int = 0) -> How:
        """Those of a run."""
        return cls(run.dtype, run.device, run.accelerate_config, run.load_in_4bit, seed)


def placed_model(name: str, how: How) -> tuple[Any, Any]:
    """A model on its device, or held together with the other processes of this run."""
    layout = layout_of(how.accelerate_config, how.device)
    if layout is None:
        return load_model(name, dtype=how.dtype, device=how.device, seed=how.seed, load_in_4bit=how.load_in_4bit)
    model, tokenizer = load_model(name, dtype=how.dtype, seed=how.seed)
    return distribute(model, layout.kind, how.device), tokenizer


def model_of(run: Run, content: str) -> tuple[Any, Any]:
    """The run's model as released: loaded once per process, then restored from a copy, bit for bit."""
    seed = run.seed if content.startswith("random:") else 0
    kept = _loaded(content, run.model, How.of(run, seed))
    restore(kept.model, kept.saved)
    return kept.model, kept.tokenizer


def reference_of(run: AttackRun) -> Any:
    """The model that the run's probe sets compare with, or None when none does."""
    name = reference(run)
    if not name:
        return None
    own_copy = -1  # the reference may be the very model that is attacked
    kept = _loaded(fingerprint(resolve(name)), name, How.of(run, own_copy))
    restore(kept.model, kept.saved)
    return kept.model
