"""An evidence bundle: one archive with results, records, curves, redacted completions, environment and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from titer.report.read import Result
from titer.report.sections.appendix import mentioned
from titer.schema.errors import TiterError
from titer.schema.files import scratch_beside

SUMS, RESULTS, LOCK = "SHA256SUMS", "results.json", "environment.txt"
TEXTS = ("prompt", "text", "target")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same evidence gives the same bytes


def write_bundle(
    results: Sequence[Result], runs: str | Path, output: str | Path, *, show_completions: bool = False
) -> Path:
    """Write the archive (zip) of `results` with their run folders `runs/<id>`; returns its path.

    Completions keep length, hash, outcome and score of every text; `show_completions` keeps the texts. Errors:
    TiterError when a run named in the results is not under `runs`.
    """
    target = Path(output)
    files = dict(_files(results, Path(runs), show_completions))
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch_beside(target)
    try:
        with temporary.open("xb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in [*sorted(files.items()), (SUMS, sums.encode())]:
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _files(results: Sequence[Result], runs: Path, show: bool) -> Iterator[tuple[str, bytes]]:
    yield RESULTS, json.dumps(list(results), ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
    yield LOCK, "".join(f"{line}\n" for line in _installed()).encode()
    for record in dict.fromkeys(r for result in results for r in result.get("records") or ()):
        folder = runs / str(record)
        if Path(str(record)).name != str(record) or not (folder / "record.json").is_file():
            raise TiterError(f"bundle: {folder}: not a finished run: pass the folder that holds the results' runs")
        for name in ("record.json", "curve.jsonl"):
            if (folder / name).is_file():
                yield f"runs/{record}/{name}", (folder / name).read_bytes()
        if (folder / "completions.jsonl").is_file():
            data = (folder / "completions.jsonl").read_bytes()
            yield f"runs/{record}/completions.jsonl", data if show else _redacted(data)


def _installed() -> list[str]:
    found = {(d.metadata["Name"] or "").lower(): d.version for d in metadata.distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name)


def _redacted(lines: bytes) -> bytes:
    """Completions with every text replaced by its length and SHA-256."""
    rows = (json.loads(line) for line in lines.decode("utf-8", "surrogatepass").split("\n") if line)
    return "".join(json.dumps(_redact(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _redact(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _stand_in(str(v)) if k in TEXTS else v for k, v in row.items()}


def _stand_in(text: str) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"characters": len(text), "sha256": digest}


def verify_bundle(path: str | Path) -> list[str]:
    """Every way in which a bundle is not what it says, one line each; an empty list is a good bundle.

    Checks that the archive reads, that exactly the listed files are there with the listed hashes, and that every run
    the results mention has its record. Errors: TiterError when there is no such archive. Nothing is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return list(_problems(archive))
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError) as error:
        raise TiterError(f"verify: {path}: not a bundle ({error}): check the path") from None


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if SUMS not in names or RESULTS not in names:
        yield f"{SUMS if SUMS not in names else RESULTS}: missing: not made by `titer bundle`"
        return
    yield from (f"{n}: there twice" for n in sorted({n for n in names if names.count(n) > 1}))
    listed = {
        name: digest for digest, _, name in (x.partition("  ") for x in archive.read(SUMS).decode().splitlines())
    }
    yield from (f"{n}: not listed in {SUMS}" for n in names if n not in listed and n != SUMS)
    for name, digest in listed.items():
        if name not in names:
            yield f"{name}: missing"
        elif _hash(archive, name) != digest:
            yield f"{name}: changed since the bundle was made"
    for result in json.loads(archive.read(RESULTS)):
        own = set(map(str, result.get("records") or ()))
        lost = [r for r in dict.fromkeys([*own, *mentioned(result)]) if f"runs/{r}/record.json" not in names]
        yield from (f"runs/{r}/record.json: missing, though {result.get('model')} rests on it" for r in lost)


def _hash(archive: zipfile.ZipFile, name: str) -> str:
    """SHA-256 of a member, in pieces so that a large one need not fit in memory; a broken one hashes to nothing."""
    digest = hashlib.sha256()
    try:
        with archive.open(name) as stream:
            for piece in iter(lambda: stream.read(1 << 20), b""):
                digest.update(piece)
    except (zipfile.BadZipFile, zlib.error, RuntimeError):
        return ""
    return digest.hexdigest()
