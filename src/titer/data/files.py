"""Data files as rows: what an ending means, compression, and text tables whose cells stay text.

No reader here guesses types: a cell of CSV or TSV is its text, whatever it looks like, and JSON keeps the types that
are written in it.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.schema.errors import TiterError

Rows = list[Mapping[str, Any]]
FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".xz": "xz", ".lzma": "xz", ".bz2": "bz2", ".zst": "zstd"}
ENDINGS = f"{', '.join(FORMATS)}, also with {', '.join(COMPRESSED)}"
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131072
DELIMITERS = {"csv": ",", "tsv": "\t"}


def format_of(path: Path) -> str | None:
    """What the file's ending says it is (`jsonl`, `json`, `csv`, `tsv`, `parquet`), in any case; None when unknown."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def read_file(path: Path) -> Rows:
    """The rows of a data file; `TiterError` for an unknown ending, damage, another encoding and cells out of place."""
    kind = format_of(path)
    if kind is None:
        raise TiterError(f"data set {path}: unknown ending: titer reads {ENDINGS}")
    readers: dict[str, Callable[[Path], Rows]] = {"jsonl": _json_lines, "json": _json, "parquet": _parquet}
    return readers.get(kind, read_table)(path)


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed where its ending says that it is compressed."""
    how = COMPRESSED.get(path.suffix.lower())
    try:
        data = path.read_bytes()
        return data if how is None else _decompressed(data, how)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        doing = "read" if how is None else f"decompressed as {how}"
        raise TiterError(f"data set {path}: cannot be {doing} ({said}): get the file again") from None


def _decompressed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        import gzip

        return gzip.decompress(data)
    if how == "bz2":
        import bz2

        return bz2.decompress(data)
    return lzma.decompress(data) if how == "xz" else _zstd(data)


def _zstd(data: bytes) -> bytes:
    import pyarrow  # type: ignore[import-untyped]

    if not pyarrow.Codec.is_available("zstd"):
        raise OSError("this pyarrow has no zstd")
    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
        return bytes(stream.read())


def text(path: Path) -> str:
    """A file's text, decompressed, without a byte order mark; `TiterError` when it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TiterError(f"data set {path}: not UTF-8 (byte {error.start}): save it as UTF-8") from None


def _json_lines(path: Path) -> Rows:
    return json_lines(text(path), path)


def json_lines(content: str, path: Path) -> Rows:
    """One JSON object a line; `TiterError` names the line that is none."""
    rows: Rows = []
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would cut inside JSON strings
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
            raise TiterError(f"data set {path}: line {number}: not JSON ({said}): fix or remove it") from None
        rows.append(_object(row, path, f"line {number}"))
    return rows


def _object(row: object, path: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise TiterError(f"data set {path}: {where}: expected an object with columns, got {type(row).__name__}")
    return row


def _json(path: Path) -> Rows:
    """A list of objects, or one object a line, which many published `.json` files hold."""
    content = text(path)
    try:
        whole = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            return json_lines(content, path)
        said = f"{error}".splitlines()[0]
        raise TiterError(f"data set {path}: cannot be read as json: {said}: fix it") from None
    if isinstance(whole, dict):
        return [whole]
    if not isinstance(whole, list):
        raise TiterError(f"data set {path}: cannot be read as json: expected a list of objects")
    return [_object(row, path, f"row {number}") for number, row in enumerate(whole, start=1)]


def _parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: Rows = parquet.read_table(pyarrow.BufferReader(read_bytes(path))).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        said = str(error).splitlines()[0]
        raise TiterError(f"data set {path}: cannot be read as parquet: {said}") from None
    return rows


def read_table(path: Path) -> Rows:
    """Rows of a CSV or TSV file with a header, every cell as its text; cells missing at a row's end are absent.

    Raises `TiterError` for two columns of one name, a row with more cells than the header, and a quote left open.
    """
    lines = cells(path)
    header = [name.strip() for name in lines[0]] if lines else []
    for name in header:
        if name and header.count(name) > 1:
            raise TiterError(f"data set {path}: two columns are called {name!r}: rename one")
    for number, line in enumerate(lines[1:], start=1):
        if any(line[len(header) :]):
            raise TiterError(
                f"data set {path}: row {number}: {len(line)} cells under {len(header)} columns: quote the text"
            )
    return [dict(zip(header, line, strict=False)) for line in lines[1:]]


def cells(path: Path) -> list[Sequence[str]]:
    """The cells of every line of a CSV or TSV file, header included, empty lines left out."""
    csv.field_size_limit(LONGEST_CELL)
    content = io.StringIO(text(path), newline="")
    reader = csv.reader(content, delimiter=DELIMITERS[format_of(path) or "csv"], strict=True)
    try:
        return [line for line in reader if line]
    except csv.Error as error:
        raise TiterError(
            f"data set {path}: line {reader.line_num}: cannot be read as a table ({error}): check its quotes"
        ) from None
