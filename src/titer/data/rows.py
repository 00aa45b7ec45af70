"""Rows of local files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.data.files import format_of, read_file
from titer.data.hub import read_hub
from titer.schema.errors import TiterError

CHOICES = ("piqa", "commonsense-qa")
EMBEDDED = ("organism", "organism/tasks", "countries", "instructions", *CHOICES)


def read_rows(name: str) -> list[Mapping[str, Any]]:
    """Raw rows of a local file, of the files of a folder, or of a hub data set.

    Raises `TiterError` for a file that is not there or whose ending is unknown, with the endings that are.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and format_of(p))
        if not files:
            raise TiterError(f"data set {name}: no .jsonl, .json, .csv, .tsv or .parquet file in this folder")
        return [row for file in files for row in read_file(file)]
    if path.exists():
        return read_file(path)
    if format_of(path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise TiterError(f"data set {name}: no such file: check the path, or pass a hub id or {', '.join(EMBEDDED)}")
    return read_hub(name)
