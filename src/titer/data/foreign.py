"""Columns of other people's sets that must not be dropped in silence: read as published, or refused by name.

A row that says of its answer that it is unsafe, or a prompt of which a part stands in another column, means something
else when that column is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from titer.schema.errors import TiterError

RATED = "says which answers are unsafe or worse"
CUT = "holds a part of the prompt"
MEANINGS = {
    RATED: (
        "is_safe", "safe", "is_unsafe", "unsafe", "is_harmful", "is_harmless", "harmfulness", "is_refusal", "is_toxic",
        "toxic", "toxicity", "flagged", "jailbreak", "jailbroken", "safety", "safety_label", "rejected", "chosen",
        "is_response_0_safe", "is_response_1_safe", "safer_response_id", "better_response_id", "response_0",
        "response_1", "label", "labels", "is_safe_response", "harm_label", "response_harm_label",
    ),
    CUT: (
        "input", "context", "system", "system_prompt", "instruction", "question", "history", "messages",
        "conversation", "conversations", "passage", "document", "documents", "choices", "options", "story",
    ),
}  # fmt: skip
OWN = ("harmful", "harmless")  # whoever writes these columns has said what his answers are
ANSWERS = ("response", "output", "answer", "refusal", "completion")
PUBLISHED = {  # the first whose columns are all there
    "beavertails-refusals": {"prompt", "response", "is_safe", "refusal"},
    "beavertails": {"prompt", "response", "is_safe"},
    "pku-safe-rlhf": {"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"},
    "alpaca": {"instruction", "input", "output"},
    "dolly": {"instruction", "context", "response"},
}

MARKS = {
    "beavertails": {"is_safe"},
    "pku-safe-rlhf": {"response_0", "is_response_0_safe", "safer_response_id"},
    "alpaca": {"input"},
    "dolly": {"context"},
    "ultrachat": {"messages"},
}


def check_columns(rows: Sequence[Mapping[str, Any]], read: Collection[str], name: str) -> None:
    """Raise `TiterError` for a column that changes what a row means and is not among those `read`.

    Columns are compared in lower case. An empty part of a prompt (Alpaca's `input`, mostly) is no part of it.
    """
    present = {column.lower(): column for row in rows for column in map(str, row) if column not in read}
    _one_answer(present, read, name)
    for why, columns in MEANINGS.items():
        for column in columns:
            if column in present and not _harmless(rows, present[column], why, read):
                advice = _advice({*present, *(c.lower() for c in read)}, name)
                raise TiterError(f"data set {name}: column {present[column]} {why} and would not be read: {advice}")


def _harmless(rows: Sequence[Mapping[str, Any]], column: str, why: str, read: Collection[str]) -> bool:
    """Whether the column can be left out: nothing stands in it, or it rates answers that the owner has sorted."""
    if all(row.get(column) in (None, "", [], {}) or _blank(row[column]) for row in rows):
        return True
    if why == RATED:
        return column.lower() in ("label", "labels", "chosen", "rejected") and bool({*read} & {*OWN})
    return column.lower() in ("instruction", "question") and "prompt" in read and bool({*read} & {*OWN})


def _blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _one_answer(present: Mapping[str, str], read: Collection[str], name: str) -> None:
    """Two columns that could each be the right answer are one too many."""
    taken = next((c for c in read if c in ANSWERS), None)
    other = next((present[c] for c in ANSWERS if c in present), None)
    if taken and other:
        raise TiterError(
            f"data set {name}: columns {taken} and {other}: either could be the right answer: "
            "call one harmless and drop the other"
        )


def _advice(columns: Collection[str], name: str) -> str:
    near = next((short for short, marks in MARKS.items() if marks & set(columns)), None)
    mine = "rename the columns to prompt, harmful and harmless"
    return f"if these are rows of {near} write {near}:{name} in its columns, else {mine}" if near else mine


def published_like(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The published set whose columns every row has, so that a plain file is read like it; None for the others."""
    shared = set.intersection(*({*map(str, row)} for row in rows)) if rows else set()
    if shared & {*OWN}:
        return None
    return next((short for short, needed in PUBLISHED.items() if needed <= shared), None)
