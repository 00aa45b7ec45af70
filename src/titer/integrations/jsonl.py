"""Instances as JSON lines: one completion a line, with its verdicts' result named in each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from titer.integrations.stored import Stored
from titer.schema.files import write_lines


def write(found: Stored, output: Path) -> list[Path]:
    """Write `output`, a line per completion; texts as `found` shows them. Returns the files written."""
    about = {"model": found.model.full_name, "suite": found.suite, "redacted": not found.show}
    write_lines(output, ({"id": said.key, **asdict(said), **about} for said in found.completions()))
    return [output]
