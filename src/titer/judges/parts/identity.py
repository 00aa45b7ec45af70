"""What a judge is beyond its name: the content of the model folders and files that its options point to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from titer.judges import parse
from titer.models.load import resolve
from titer.models.weights import fingerprint
from titer.schema.types import spec_id

MODELS = ("model", "reference")  # options that name a model
FILES = ("rubric", "prompt_file")  # options that name a file


def identity(name: str) -> str:
    """Hash of what a judge reads from disk, so that a changed judge of the same name is another; "" for nothing.

    A hub id, an endpoint's model and what an imported class reads are known by name only.
    """
    if name.startswith("panel:"):
        found = {part: identity(part.strip()) for part in name.removeprefix("panel:").split("|")}
    else:
        kind, options = parse(name)
        local = FILES if kind == "endpoint" else MODELS + FILES  # an endpoint's model is on its server
        found = {key: _content(key, str(value)) for key, value in options.items() if key in local}
    found = {key: value for key, value in found.items() if value}
    return spec_id(found) if found else ""


def _content(option: str, value: str) -> str:
    path = Path(resolve(value) if option in MODELS else value)
    if path.is_dir():
        return fingerprint(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
