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
from titer.schema.specs import AttackRun, Compute, Run


@dataclass
class _Loaded:
    model: Any
    tokenizer: Any
    saved: Snapshot


@lru_cache(maxsize=2)
def loaded(content: str, name: str, compute: Compute, seed: int) -> _Loaded:
    """A model as released and a copy of its weights, kept for the next run that needs it."""
    model, tokenizer = placed_model(name, compute, seed)
    return _Loaded(model, tokenizer, snapshot(model))


def placed_model(name: str, compute: Compute, seed: int = 0) -> tuple[Any, Any]:
    """A model on its device, or held together with the other processes of this run."""
    dtype, device = compute.dtype, compute.device
    layout = layout_of(compute.accelerate_config, device)
    if layout is None:
        return load_model(name, dtype=dtype, device=device, seed=seed, load_in_4bit=compute.load_in_4bit)
    model, tokenizer = load_model(name, dtype=dtype, seed=seed)
    return distribute(model, layout.kind, device), tokenizer


def model_of(run: Run, content: str) -> tuple[Any, Any]:
    """The run's model as released: loaded once per process, then restored from a copy, bit for bit."""
    seed = run.seed if content.startswith("random:") else 0
    kept = loaded(content, run.model, run.compute, seed)
    restore(kept.model, kept.saved)
    return kept.model, kept.tokenizer


def reference_of(run: AttackRun) -> Any:
    """The model that the run's probe sets compare with, or None when none does."""
    name = reference(run)
    if not name:
        return None
    own_copy = -1  # the reference may be the very model that is attacked
    kept = loaded(fingerprint(resolve(name)), name, run.compute, own_copy)
    restore(kept.model, kept.saved)
    return kept.model
