"""Several processes for one run: what a configuration names."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from titer.models.shards import Kind
from titer.schema.errors import TiterError, unknown
from titer.schema.specs import Compute

FROM_ACCELERATE = {"FSDP": "fsdp2", "MULTI_GPU": "multi_gpu", "MULTI_CPU": "multi_gpu"}


@dataclass(frozen=True)
class Layout:
    """How weights are held, and by how many processes."""

    kind: Kind
    processes: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.processes}"


def layout(config: str, device: str = "cpu") -> Layout | None:
    """The layout that `--accelerate_config` names; None for "" and for a single process.

    `fsdp2` and `multi_gpu` take one process per accelerator; `:N` says how many. Raises `TiterError` for what is none
    of these, and for a file that asks for what titer does not do.
    """
    if not config:
        return None
    if Path(config).suffix in (".yaml", ".yml", ".json") or os.sep in config:
        kind, count = _from_file(Path(config))
    else:
        kind, _, number = config.partition(":")
        if number and not number.isdigit():
            raise TiterError(f"accelerate_config {config}: {number!r} is no number of processes: write {kind}:2")
        count = int(number) if number else 0
    if kind not in get_args(Kind):
        raise unknown("accelerate_config", kind, [*get_args(Kind), "an accelerate file.yaml"])
    count = count or _accelerators(config, device)
    return Layout(kind, count) if count > 1 else None  # type: ignore[arg-type]


def _from_file(path: Path) -> tuple[str, int]:
    """Layout and number of processes of a file written by `accelerate config`."""
    import yaml

    if not path.is_file():
        raise TiterError(f"accelerate_config {path}: no such file: pass fsdp2, multi_gpu or an existing file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise TiterError(f"accelerate_config {path}: not a file of `accelerate config`")
    kind = str(found.get("distributed_type", "NO"))
    if int(found.get("num_machines", 1)) > 1:
        raise TiterError(f"accelerate_config {path}: num_machines: a run is done on one machine: set it to 1")
    if str(found.get("mixed_precision", "no")) not in ("no", "False"):
        raise TiterError(f"accelerate_config {path}: mixed_precision: set it to 'no' and pass --bf16 instead")
    if kind == "FSDP" and int((found.get("fsdp_config") or {}).get("fsdp_version", 1)) != 2:
        raise TiterError(f"accelerate_config {path}: fsdp_config: set fsdp_version to 2")
    if kind not in (*FROM_ACCELERATE, "NO"):
        raise TiterError(f"accelerate_config {path}: distributed_type {kind}: use FSDP, MULTI_GPU or MULTI_CPU")
    return FROM_ACCELERATE.get(kind, "multi_gpu"), 1 if kind == "NO" else int(found.get("num_processes", 0))


def _accelerators(config: str, device: str) -> int:
    import torch

    if device.startswith("cpu"):
        raise TiterError(f"accelerate_config {config}: on the CPU say how many processes: write {config}:2")
    return torch.cuda.device_count()


def canonical(compute: Compute) -> Compute:
    """Where a run computes, as specs hold it: `accelerate_config` is `kind:processes`, "" for one process."""
    return replace(compute, accelerate_config=str(layout(compute.accelerate_config, compute.device) or ""))
