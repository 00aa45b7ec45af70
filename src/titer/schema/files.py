"""Files that are whole or not there: JSON, JSON lines, text and YAML."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from titer.schema.errors import DiskTrouble, TiterError
from titer.schema.types import (
    from_json,
    to_json,
)

RECORD, CURVE, COMPLETIONS = "record.json", "curve.jsonl", "completions.jsonl"  # in a run folder
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)  # of a file's content
T = TypeVar("T")


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = scratch_beside(path)
        try:
            with temporary.open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DiskTrouble(
            f"{path}: cannot be written: {error.strerror}: free space or choose another folder"
        ) from None


def scratch_beside(path: Path) -> Path:
    """A hidden name beside `path` that nothing has yet; what is made there gets the permissions that umask allows."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written atomically."""
    write_text(path, json.dumps(to_json(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """JSON of a file; `TiterError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TiterError(f"{path}: no such file: check the path") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except DAMAGE as error:
        raise TiterError(f"{path}: damaged ({first_line(error)}): remove it and run again") from None


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Rows as JSONL, written atomically."""
    write_text(path, "".join(json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in rows))


def read_lines(path: Path) -> list[Any]:
    """Rows of a JSONL file; `TiterError` when it is missing, and naming the line that is damaged."""
    return _parsed(path, json.loads)


def read_records(cls: type[T], path: Path) -> list[T]:
    """A file of JSON lines, each as an instance of `cls`."""
    return _parsed(path, lambda line: from_json(cls, json.loads(line)))


def _parsed(path: Path, parse: Callable[[str], T]) -> list[T]:
    rows, number = [], 0
    try:
        with path.open("rb") as stream:
            for line in stream:
                number += 1
                if line.strip():
                    rows.append(parse(line.decode("utf-8")))
    except FileNotFoundError:
        raise TiterError(f"{path}: no such file: remove the run folder and run again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except DAMAGE:
        raise TiterError(f"{path}: line {number}: damaged: remove the run folder and run again") from None
    return rows


def read_yaml(path: str | Path, where: str, example: str) -> dict[str, Any]:
    """The keys and values of a YAML file; `TiterError`, with `example`, for anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TiterError(f"{where}: no such file: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TiterError(f"{where}: cannot be read: {error}") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TiterError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise TiterError(f"{where}: expected keys and values, such as `{example}`")
    return {str(key): _numbers(value) for key, value in raw.items()}


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text: such text becomes the number it looks like."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def disk_says(error: BaseException) -> str:
    """What the disk said, when an error is of its making; else ""."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error)
    number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors writes by itself and raises its own type
    return os.strerror(int(number[1])) if number and type(error).__name__ == "SafetensorError" else ""


def unreadable(path: Path, error: OSError) -> TiterError:
    """The one line about a file that is there and may not be read."""
    return TiterError(f"{path}: cannot be read: {error.strerror}: mend its permissions or its disk")


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of a local file or of the files in a folder; nothing for what is not there."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files)
