"""titer: what does it cost an attacker to fine-tune the safety out of a model, and how much more after immunization?

`import titer` loads no torch; the names below are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "attack": "titer.runs.verbs",
    "evaluate": "titer.evaluation.evaluate",
    "evaluate_provider": "titer.evaluation.provider",
    "examine": "titer.mechanism.examine",
    "immunize": "titer.runs.verbs",
    "load_model": "titer.models.load",
    "Attempt": "titer.schema.evaluation",
    "Breach": "titer.schema.breach",
    "Budget": "titer.schema.types",
    "Compute": "titer.schema.specs",
    "Data": "titer.schema.evaluation",
    "Evaluation": "titer.schema.evaluation",
    "Example": "titer.schema.types",
    "Grading": "titer.schema.evaluation",
    "Immunization": "titer.schema.evaluation",
    "Mechanism": "titer.schema.mechanism",
    "Pair": "titer.schema.types",
    "Provider": "titer.schema.evaluation",
    "Runner": "titer.runs.runner",
    "Search": "titer.schema.evaluation",
    "TiterError": "titer.schema.errors",
    "TrainArgs": "titer.schema.specs",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'titer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
