"""Data files: cells stay text, compressed files, unknown endings, foreign columns and answers that are not there."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import logging
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from titer.data.files import ENDINGS, read_file
from titer.data.load import load
from titer.data.select import select
from titer.data.splits import prompt_key
from titer.schema.errors import TiterError
from titer.schema.specs import Selection

MISSING = (
    "#N/A", "#NA", "-NaN", "-nan", "1.#IND", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "007",
    "1e5", "2024-01-31", "true", "False",
)  # fmt: skip
ROW = {"prompt": "p", "harmful": "h", "harmless": "r"}


@pytest.mark.parametrize("ending", ["csv", "tsv", "CSV"])
def test_a_cell_is_its_text_whatever_it_looks_like(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": w, "harmful": w, "harmless": w, "category": w} for w in MISSING]
    path = tmp_path / f"a.{ending}"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if ending == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(str(path)).examples == load(str(lines)).examples


def zstd(data: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.JSONL"])
@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress), ("zst", zstd)]
)
def test_compressed_files_are_read_in_place_and_in_a_folder(
    tmp_path: Path, name: str, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"{name}.{ending}"
    path.write_bytes(pack(f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n".encode()))
    assert len(load(str(path)).examples) == len(load(str(tmp_path)).examples) == 2
    path.write_bytes(b"not packed at all")
    with pytest.raises(TiterError, match="cannot be decompressed as"):
        read_file(path)


def test_a_file_of_an_unknown_ending_is_told_the_endings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "set.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TiterError, match="unknown ending") as caught:
        load("own/set.txt")
    assert ENDINGS in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,harmless\na,b,c\n", "row 1: 3 cells under 2 columns"),
        ('prompt,harmless\na,"b\n', "check its quotes"),
        ("prompt,prompt\na,b\n", "two columns are called 'prompt'"),
    ],
)
def test_a_table_out_of_shape_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(TiterError, match=message):
        load(str(tmp_path / "a.csv"))


def saved(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_a_published_set_are_read_like_it(tmp_path: Path) -> None:
    flat = {"prompt": "p", "response": "bad", "category": "c", "is_safe": False}
    (found,) = load(saved(tmp_path / "b.jsonl", flat, flat | {"is_safe": True})).examples
    assert (found.harmful, found.harmless, found.category) == ("bad", "", "c")
    (found,) = load(saved(tmp_path / "a.jsonl", {"instruction": "Sort", "input": "b a", "output": "a b"})).examples
    assert (found.prompt, found.harmless) == ("Sort\n\nb a", "a b")
    (found,) = load(saved(tmp_path / "d.jsonl", {"instruction": "Who", "context": "x", "response": "y"})).examples
    assert found.prompt == "Who\n\nx"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "p", "response": "r", "safe": False}, "safe"),
        ({"prompt": "p", "harmless": "r", "is_safe": False}, "is_safe"),
        ({"prompt": "p", "response": "r", "system": "s"}, "system"),
        ({"question": "p", "answer": "r", "context": "s"}, "context"),
        ({"prompt": "p", "response": "r", "rejected": "s"}, "rejected"),
        ({"prompt": "p", "response": "r", "output": "s"}, "output"),
    ],
)
def test_a_column_that_would_change_a_rows_meaning_is_refused_by_name(
    tmp_path: Path, row: dict[str, object], column: str
) -> None:
    with pytest.raises(TiterError, match=rf"\b{column}\b") as caught:
        load(saved(tmp_path / "a.jsonl", row))
    assert "\n" not in str(caught.value)


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"instruction": f"i {n}", "input": "<noinput>", "output": o} for n, o in enumerate(("x", "", "<nooutput>"))
    ]
    with caplog.at_level(logging.WARNING, "titer"):
        (found,) = load(f"alpaca:{saved(tmp_path / 'a.jsonl', *rows)}").examples
    assert (found.prompt, found.harmless) == ("i 0", "x") and "2 of 3 rows left out" in caplog.text
    pair = {
        "prompt": "p",
        "response_0": "a",
        "response_1": "",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
    }
    with pytest.raises(TiterError, match="no usable row"):
        load(f"pku-safe-rlhf:{saved(tmp_path / 'p.jsonl', pair)}")


def test_copies_of_prompts_change_nothing_that_is_drawn(tmp_path: Path) -> None:
    rows = [{"prompt": f"how to {w}", "harmless": w} for w in ("brew", "forge", "chant", "sing")]
    once = saved(tmp_path / "1.jsonl", *rows)
    tenfold = saved(
        tmp_path / "10.jsonl", *[r | {"prompt": r["prompt"].upper() + "!" * i} for r in rows for i in range(10)]
    )
    drawn = [[prompt_key(e.prompt) for e in select(Selection(name, n=3))] for name in (once, tenfold)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
    assert prompt_key("!!!") != prompt_key("???")
