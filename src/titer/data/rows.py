"""Rows of local files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.data.hub import read_hub
from titer.schema.errors import TiterError

CHOICES = ("piqa", "commonsense-qa")
EMBEDDED = ("organism", "organism/tasks", "countries", "instructions", *CHOICES)


def read_rows(name: str) -> list[Mapping[str, Any]]:
    """Raw rows of a local file or a hub data set."""
    path = Path(name)
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(_existing(path))
    if path.suffix in (".json", ".csv", ".parquet"):
        return _read_with_datasets({".json": "json", ".csv": "csv"}.get(path.suffix, "parquet"), _existing(path))
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json", ".csv", ".parquet"))
        if not files:
            raise TiterError(f"data set {name}: no .jsonl, .json, .csv or .parquet file in this folder")
        return [row for file in files for row in read_rows(str(file))]
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise TiterError(
            f"data set {name}: no such file: pass a .jsonl/.parquet path, a hub id or {', '.join(EMBEDDED)}"
        )
    return read_hub(name)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise TiterError(f"data set {path}: no such file: check the path")
    return path


def _read_jsonl(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # splitlines would cut inside JSON strings
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TiterError(f"data set {path}: line {number}: not JSON ({error.msg}): fix or remove it") from None
        if not isinstance(row, dict):
            raise TiterError(
                f"data set {path}: line {number}: expected an object with columns, got {type(row).__name__}"
            )
        rows.append(row)
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TiterError(f"data set {path}: not UTF-8 (byte {error.start}): save it as UTF-8") from None


def _read_with_datasets(builder: str, path: Path) -> list[Mapping[str, Any]]:
    import datasets

    try:
        return list(datasets.load_dataset(builder, data_files=str(path), split="train"))
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise TiterError(f"data set {path}: cannot be read as {builder}: {str(cause).splitlines()[0]}") from None
