"""An evidence bundle: one archive with results, records, curves, redacted completions, environment and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from titer.report.read import Result, mentioned
from titer.report.untrusted import one_line
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS, CURVE, RECORD, scratch_beside

SUMS, RESULTS, LOCK = "SHA256SUMS", "results.json", "environment.txt"
TEXTS = ("prompt", "text", "target")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same evidence gives the same bytes
PIECE = 1 << 20
LARGEST = 64 << 20  # bytes of what is read whole: the checksums, the results, a line of completions
UNPACKED = 200, 16 << 20  # a bundle may claim this many times its size, and this many bytes more
BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, ValueError)  # of an archive


def write_bundle(
    results: Sequence[Result], runs: str | Path, output: str | Path, *, show_completions: bool = False
) -> Path:
    """Write the archive (zip) of `results` with their run folders `runs/<id>`; returns its path.

    Completions keep length, hash, outcome and score of every text; `show_completions` keeps the texts. Errors:
    TiterError when a run named in the results is not under `runs`, files of it cannot be read, the results are larger
    than what `verify_bundle` reads, or the archive cannot be written.
    """
    target = Path(output)
    members = dict(sorted(_members(results, Path(runs), show_completions)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = scratch_beside(target)
        try:
            with temporary.open("xb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                sums = {name: _add(archive, name, pieces) for name, pieces in members.items()}
                _add(archive, SUMS, ["".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()])
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TiterError(
            f"bundle: {error.filename or target}: {error.strerror or error}: free space or mend it"
        ) from None
    return target


def _add(archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes]) -> str:
    """Put a member into the archive piece by piece; its SHA-256."""
    info, digest = zipfile.ZipInfo(name, EPOCH), hashlib.sha256()
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=name.endswith(COMPLETIONS)) as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def _members(results: Sequence[Result], runs: Path, show: bool) -> Iterator[tuple[str, Iterable[bytes]]]:
    text = json.dumps(list(results), ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
    if not _readable(text):
        raise TiterError(f"bundle: results of {len(text):,} bytes: make a bundle of fewer at once")
    yield RESULTS, [text]
    yield LOCK, [f"{line}\n".encode() for line in _installed()]
    for record in dict.fromkeys(record for result in results for record in _records(result)):
        folder = runs / record
        if Path(record).name != record or not (folder / RECORD).is_file():
            raise TiterError(f"bundle: {folder}: not a finished run: pass the folder that holds the results' runs")
        for name in (RECORD, CURVE):
            if (folder / name).is_file():
                yield f"runs/{record}/{name}", _read(folder / name)
        if (folder / COMPLETIONS).is_file():
            path = folder / COMPLETIONS
            yield f"runs/{record}/{COMPLETIONS}", _read(path) if show else _redacted(path)


def _readable(text: bytes) -> bool:
    """Whether JSON is small enough to be read; a list or an object takes some thirty times its two characters."""
    return len(text) <= LARGEST and text.count(b"[") + text.count(b"{") <= LARGEST // 32


def _records(result: Result) -> list[str]:
    records = result.get("records") or ()
    if not isinstance(records, (list, tuple)):
        raise TiterError("bundle: results whose records are no list: evaluate again")
    return [str(record) for record in records]


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece


def _installed() -> list[str]:
    found = {(d.metadata["Name"] or "").lower(): d.version for d in metadata.distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name)


def _redacted(path: Path) -> Iterator[bytes]:
    """Completions with every text replaced by its length and SHA-256."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line.decode("utf-8", "surrogatepass")) if line.strip() else None
            except (ValueError, RecursionError):
                raise TiterError(f"bundle: {path}: line {number}: damaged: do the run again") from None
            if isinstance(row, dict):
                yield json.dumps(_redact(row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
            elif row is not None:
                raise TiterError(f"bundle: {path}: line {number}: not a completion: do the run again")


def _redact(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _stand_in(str(v)) if k in TEXTS else v for k, v in row.items()}


def _stand_in(text: str) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"characters": len(text), "sha256": digest}


# -------------------------------------------------------------------------------------------------------- verify


def verify_bundle(path: str | Path) -> list[str]:
    """Every way in which a bundle is not what it says, one line each; an empty list is a good bundle.

    Checks that the archive reads, that exactly the listed files are there with the listed hashes, and that every run
    the results mention has its record. Errors: TiterError when there is no such archive. Nothing is unpacked, and an
    archive that claims far more than its size is not read at all. Time and memory are linear in the archive's size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [one_line(problem) for problem in _problems(archive, Path(path).stat().st_size)]
    except BROKEN as error:
        said = one_line(str(error) or type(error).__name__)
        raise TiterError(f"verify: {path}: not a bundle ({said}): check the path") from None


def _problems(archive: zipfile.ZipFile, size: int) -> Iterator[str]:
    names = Counter(archive.namelist())
    for needed in (SUMS, RESULTS):
        if needed not in names:
            yield f"{needed}: missing: not made by `titer bundle`"
            return
    infos = archive.infolist()
    claimed, stored = sum(i.file_size for i in infos), sum(i.compress_size for i in infos)
    if claimed > UNPACKED[0] * size + UNPACKED[1] or stored > size:
        yield f"unpacks to {claimed:,} bytes, {claimed // max(size, 1):,} times its size: not made by `titer bundle`"
        return
    yield from (f"{name}: there twice" for name, times in names.items() if times > 1)
    sums = _whole(archive, SUMS)
    listed = None if sums is None else _listed(sums)
    if listed is None:
        yield f"{SUMS}: not a list of checksums"
        return
    yield from (f"{name}: not listed in {SUMS}" for name in names if name not in listed and name != SUMS)
    for name, digest in listed.items():
        if name not in names:
            yield f"{name}: missing"
        elif _hash(archive, name) != digest:
            yield f"{name}: changed since the bundle was made"
    yield from _lost(_whole(archive, RESULTS), names)


def _listed(sums: bytes) -> dict[str, str] | None:
    """SHA-256 by name; None for what is no list of them."""
    try:
        rows = [line.partition("  ") for line in sums.decode("utf-8").split("\n") if line]
    except UnicodeDecodeError:
        return None
    sound = all(space and name and len(digest) == 64 for digest, space, name in rows)
    return {name: digest for digest, _, name in rows} if sound else None


def _lost(results: bytes | None, names: Mapping[str, int]) -> Iterator[str]:
    """Runs that the results mention and whose record is not in the archive."""
    try:
        found = json.loads(results) if results and _readable(results) else None
        rows = found if isinstance(found, list) else []
        rests = [(row, dict.fromkeys(mentioned(row))) for row in rows if isinstance(row, dict)]
    except (ValueError, RecursionError):
        rows, rests = [], []
    if not rests or len(rests) < len(rows):
        yield f"{RESULTS}: not a list of results, or too large a one"
        return
    for result, records in rests:
        if not isinstance(result.get("records", []), list):
            yield f"{RESULTS}: records of {result.get('model')}: not a list"
        for record in records:
            if f"runs/{record}/{RECORD}" not in names:
                yield f"runs/{record}/{RECORD}: missing, though {result.get('model')} rests on it"


def _whole(archive: zipfile.ZipFile, name: str) -> bytes | None:
    """A member's content; None when it is broken, or larger than anything titer writes."""
    try:
        if archive.getinfo(name).file_size > LARGEST:
            return None
        return archive.read(name)
    except BROKEN:
        return None


def _hash(archive: zipfile.ZipFile, name: str) -> str:
    """SHA-256 of a member, in pieces so that a large one need not fit in memory; a broken one hashes to nothing."""
    digest = hashlib.sha256()
    try:
        if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return ""
        with archive.open(name) as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
    except BROKEN:
        return ""
    return digest.hexdigest()
