"""Data: named sets, local files and hub sets; disjoint splits by hash; templates, collation and loss masks; audit."""

from __future__ import annotations

from titer.data.audit import Overlap, audit
from titer.data.batches import collate, order
from titer.data.load import Dataset, load, save_jsonl
from titer.data.select import select
from titer.data.splits import split_of
from titer.data.tokens import encode, encode_all, render_prompt

__all__ = [
    "Dataset",
    "Overlap",
    "audit",
    "collate",
    "encode",
    "encode_all",
    "load",
    "order",
    "render_prompt",
    "save_jsonl",
    "select",
    "split_of",
]
