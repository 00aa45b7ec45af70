"""A model put into an output folder: staged, committed by one rename of a folder, and finished after any kill.

The output folder also holds runs, so it cannot be renamed as a whole. What is to be published is put together in
`OUT/.publishing`, which gets this name in one rename; from then on whoever comes next finishes the same steps. While
they last the folder has no `config.json`, so it is no model: neither the old one nor a mixture can be loaded, and the
record comes only after the weights it tells of.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from titer.runs.locks import Claims
from titer.runs.store import discard, settle
from titer.schema.errors import TiterError
from titer.schema.files import read_json, scratch_beside, write_json

STAGED = ".publishing"
PROVENANCE = "titer.json"
CLAIM = "publish"
FIRST = ("config.json", "adapter_config.json", PROVENANCE)  # gone before anything else changes
LAST = (PROVENANCE, "config.json")  # there after everything else, in this order
OTHERS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
SCRATCH = re.compile(r"\..+\.\d+-[0-9a-f]{8}(\.gone)?")  # what `scratch_beside` and `discard` name
TEMPLATES = "additional_chat_templates"


def put(folder: Path, out: Path, provenance: Any) -> None:
    """Make `out` the model in `folder` (`ROOT/runs/<id>/model`, linked where the disk allows) with its `titer.json`.

    Other files in `out` stay, those of a model before do not. Killed at any point, the next `put` or `finish` goes on.
    Raises `TiterError` when `out` cannot be written.
    """
    claims = Claims(folder.parents[2])
    with claims.waiting(CLAIM):
        mine = claims.fence(CLAIM).holds
        try:
            out.mkdir(parents=True, exist_ok=True)
            _finish(out, mine)
            if not _is(folder, out, provenance):
                _stage(folder, out, provenance, mine)
                _finish(out, mine)
        except OSError as error:
            raise _trouble(out, error) from None


def finish(out: Path) -> None:
    """Finish what a killed process has begun to publish in `out`, if there is any. Errors as for `put`."""
    if not (out / STAGED).is_dir():
        return
    claims = Claims(out)
    with claims.waiting(CLAIM):
        try:
            _finish(out, claims.fence(CLAIM).holds)
        except OSError as error:
            raise _trouble(out, error) from None


def _trouble(out: Path, error: OSError) -> TiterError:
    return TiterError(f"{out}: cannot be written: {error.strerror}: free space or mend it, then run again")


def _is(folder: Path, out: Path, provenance: Any) -> bool:
    """Whether `out` holds these very files already."""
    with suppress(OSError, TiterError):
        same = all(os.path.samefile(file, out / file.relative_to(folder)) for file in _files(folder))
        return bool(same and read_json(out / PROVENANCE) == provenance)
    return False


def _files(folder: Path) -> list[Path]:
    """Every file below a folder, in the order in which they are put in place."""
    return sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (_turn(p.name), p))


def _turn(name: str) -> int:
    return LAST.index(name) + 1 if name in LAST else 0


def _stage(folder: Path, out: Path, provenance: Any, mine: Callable[[], bool]) -> None:
    scratch = scratch_beside(out / STAGED)
    try:
        for file in _files(folder):
            _copy(file, scratch / file.relative_to(folder))
        write_json(scratch / PROVENANCE, provenance)
        settle(scratch)
        if mine():
            os.rename(scratch, out / STAGED)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy(file: Path, target: Path) -> None:
    """A link to a file, or a copy where the disk has no links, in place of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_beside(target)
    try:
        try:
            os.link(file, scratch)
        except OSError:
            shutil.copy2(file, scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)  # renaming one link of a file onto another does nothing


def _finish(out: Path, mine: Callable[[], bool]) -> None:
    """Put what is staged in place; every step may be done twice. Stops once another has taken this over."""
    staged = out / STAGED
    for left in (path for path in out.iterdir() if SCRATCH.fullmatch(path.name)):
        discard(left)
    if not staged.is_dir():
        return
    for old in [out / name for name in FIRST] + [path for path in sorted(out.iterdir()) if _of_a_model(path.name)]:
        if not mine():
            return
        old.unlink(missing_ok=True)
    shutil.rmtree(out / TEMPLATES, ignore_errors=True)
    for file in _files(staged):
        if not mine():
            return
        _copy(file, out / file.relative_to(staged))
    gone = scratch_beside(staged)
    os.rename(staged, gone)
    discard(gone)


def _of_a_model(name: str) -> bool:
    return name in OTHERS or name.endswith((".safetensors", ".safetensors.index.json"))
