"""What the files of a model's weights say without running it: layers left alone, weights that take no gradient."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from titer.models.load import resolve
from titer.models.weights import fingerprint

LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks)\.\d+)\.")
TRAINED = {"F64", "F32", "F16", "BF16"}


def identical_layers(model: str, reference: str) -> tuple[str, ...]:
    """The decoder layers whose every weight is bit for bit the reference's, once both are in float32.

    Nothing for a model that is the reference, or where either is no folder of safetensors.
    """
    ours, theirs = resolve(model), resolve(reference)
    if ours == theirs or not (Path(ours).is_dir() and Path(theirs).is_dir()):
        return ()
    return _identical(ours, theirs, (fingerprint(ours), fingerprint(theirs)))


@lru_cache(maxsize=32)
def _identical(ours: str, theirs: str, contents: tuple[str, str]) -> tuple[str, ...]:
    mine, other = _tensors(ours), _tensors(theirs)
    same: dict[str, bool] = {}
    for name, file in mine.items():
        found = LAYER.match(name)
        if found is None or same.get(found[1]) is False:
            continue
        same[found[1]] = name in other and _equal(_read(file, name), _read(other[name], name))
    return tuple(sorted(layer for layer, equal in same.items() if equal))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.float(), b.float())


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as stored:
        tensor: torch.Tensor = stored.get_tensor(name)
    return tensor


def _tensors(folder: str) -> dict[str, Path]:
    """The file of every tensor of a folder."""
    return {name: file for file in sorted(Path(folder).glob("*.safetensors")) for name in _header(file)}


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors: 8 bytes of length, then JSON."""
    with file.open("rb") as stored:
        size = int.from_bytes(stored.read(8), "little")
        said: dict[str, Any] = json.loads(stored.read(size))
    said.pop("__metadata__", None)
    return said


def trained_share(model: str) -> float | None:
    """Share of a folder's weights, matrices and more, in types that take a gradient; None where it has none."""
    counts = list(_counts(Path(resolve(model))))
    whole = sum(n for n, _ in counts)
    return sum(n for n, takes in counts if takes) / whole if whole else None


def _counts(folder: Path) -> Iterator[tuple[int, bool]]:
    """Numbers in every matrix of a folder, and whether they take a gradient."""
    for file in sorted(folder.glob("*.safetensors")):
        for said in _header(file).values():
            if len(said["shape"]) > 1:
                yield int(torch.Size(said["shape"]).numel()), said["dtype"] in TRAINED
