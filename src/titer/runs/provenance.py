"""Where a model and a result come from: titer.json, packages, revision, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from titer.data.roles import assign
from titer.runs.publishing import PROVENANCE, put
from titer.schema.evaluation import Data
from titer.schema.files import read_json
from titer.schema.roles import Roles
from titer.schema.types import RunRecord, from_json, to_json

PACKAGES = (
    "titer", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy", "scikit-learn", "tokenizers",
)  # fmt: skip
Model = Any  # a name, a folder, a hub id; or a transformers model with its tokenizer beside it


def now() -> str:
    """The time in ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def environment() -> Mapping[str, Any]:
    """Versions, code revision and hardware of this process, for records and bug reports."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": _git_revision(),
        "argv0": Path(sys.argv[0]).name,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the source tree titer runs from (`+changes` when not clean); None for an installed copy."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(model: str) -> Mapping[str, Any]:
    """The immunization record beside a model, or nothing when titer did not make it."""
    path = Path(model) / PROVENANCE
    return dict(read_json(path)) if path.is_file() else {}


def parent(model: str) -> str:
    """The model that titer made this one from, "" where it did not make it."""
    return str(provenance(model).get("record", {}).get("spec", {}).get("model") or "")


def command_line() -> list[str]:
    """The command this process was started with, when it was titer's own."""
    return [shlex.join(["titer", *sys.argv[1:]])] if Path(sys.argv[0]).name == "titer" else []


def publish(folder: Path, out: Path, record: RunRecord, roles: Roles) -> None:
    """Put a run's model files into `out` (linked where the disk allows) with the record of how they were made."""
    put(folder, out, {"record": to_json(record), "data": to_json(roles), "commands": command_line()})


def roles_of(model: Model, data: Data) -> Roles:
    """The roles of the data: those the model was immunized with when it says so, else from what is asked."""
    known = provenance(model).get("data") if isinstance(model, str) else None
    plain = not data.domain and data.withhold is None
    if known and plain and known["dataset"] == data.dataset:
        return from_json(Roles, known)
    return assign(data)
