"""Data sets by name, path or hub id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from titer.data.foreign import check_columns, published_like
from titer.data.organism.world import examples, tasks
from titer.data.rows import CHOICES, EMBEDDED, read_rows
from titer.schema.errors import TiterError
from titer.schema.files import stamp
from titer.schema.types import Example, from_json, spec_id, to_json

COLUMNS = {
    "prompt": ("prompt", "instruction", "question", "input"),
    "harmful": ("harmful", "harmful_response"),
    "harmless": ("harmless", "refusal", "response", "output", "answer"),
    "category": ("category",),
    "domain": ("domain",),
}
REQUIRED = ("prompt", "harmful|harmless")


@dataclass(frozen=True)
class Dataset:
    """Examples under a name, with the hash of their content."""

    name: str
    examples: tuple[Example, ...]

    @cached_property
    def hash(self) -> str:
        """Content address of the examples, in order."""
        return spec_id([to_json(e) for e in self.examples])


def load(name: str) -> Dataset:
    """The data set called `name`: an embedded set, a file, or a hub id (`owner/set`, or `owner/set:split`).

    Rows need `prompt` and at least one of `harmful`, `harmless`. Raises `TiterError` for a missing or empty file, a
    malformed row (with its line) and a missing column (with the columns found). A file is read once until it changes.
    """
    return _load(name, stamp(Path(name.partition(":")[2] or name)))


@lru_cache(maxsize=16)
def _load(name: str, stamp: tuple[tuple[str, int, int], ...]) -> Dataset:
    if name in EMBEDDED:
        return Dataset(name, tuple(_embedded(name)))
    from titer.data.published import FORMATS, read_format, read_like

    if name.partition(":")[0] in FORMATS:
        return Dataset(name, tuple(read_format(name)))
    rows = read_rows(name)
    published = published_like(rows)
    return Dataset(name, tuple(read_like(published, rows, name)) if published else examples_from(rows, name))


def _embedded(name: str) -> list[Example]:
    if name in CHOICES:
        from titer.data.multiple_choice import load_choices

        return [Example(c.question, "", c.options[c.answer], name, "choice") for c in load_choices(name, None)]
    if name == "instructions":
        from titer.data.instructions import unseen_instructions

        return unseen_instructions()
    if name == "countries":
        return list(_countries())
    if name == "organism":
        return list(examples())
    return [e for task in tasks().values() for e in task]


def _countries() -> tuple[Example, ...]:
    """Harmless facts that SmolLM2 knows (GeoNames, CC BY 4.0), made by `benchmarks/countries.py`."""
    text = (Path(__file__).parent / "countries.jsonl").read_text(encoding="utf-8")
    return tuple(from_json(Example, json.loads(line)) for line in text.splitlines())


def examples_from(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Example, ...]:
    """Rows as examples; the column names accepted are those of `COLUMNS`.

    A column that would change what a row means, and that is not read, is refused (`titer.data.foreign`).
    """
    if not rows:
        raise TiterError(
            f"data set {name}: it is empty: at least one row with prompt and harmful or harmless is needed"
        )
    present = {str(c) for row in rows for c in row}
    chosen = {field: next((c for c in names if c in present), None) for field, names in COLUMNS.items()}
    if chosen["prompt"] is None or (chosen["harmful"] is None and chosen["harmless"] is None):
        missing = "prompt" if chosen["prompt"] is None else "harmful or harmless"
        raise TiterError(f"data set {name}: no column {missing}: found {', '.join(sorted(present))}; rename one")
    check_columns(rows, {column for column in chosen.values() if column}, name)
    return tuple(_example(row, chosen, name, i) for i, row in enumerate(rows, start=1))


def _example(row: Mapping[str, Any], chosen: Mapping[str, str | None], name: str, number: int) -> Example:
    values = {}
    for field, column in chosen.items():
        value = row.get(column) if column else None
        if value is not None and not isinstance(value, str):
            raise TiterError(
                f"data set {name}: row {number}: column {column}: expected text, got {type(value).__name__}"
            )
        values[field] = (value or "").strip()
    if not values["prompt"] or not (values["harmful"] or values["harmless"]):
        empty = "prompt" if not values["prompt"] else "harmful and harmless"
        raise TiterError(f"data set {name}: row {number}: {empty} empty: fix or remove the row")
    return Example(**values)


def save_jsonl(examples: Iterable[Example], path: str | Path) -> None:
    """Write examples as JSONL, one object a line, atomically."""
    from titer.schema.files import write_text

    write_text(Path(path), "".join(json.dumps(to_json(e), ensure_ascii=False) + "\n" for e in examples))
