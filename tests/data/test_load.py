"""Data sets by one argument, and every way a file can be wrong: one line that says which file, where and what."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from titer.data.load import load, save_jsonl
from titer.data.rows import read_rows
from titer.schema.errors import TiterError
from titer.schema.types import Example

GOOD = json.dumps({"prompt": "p", "harmful": "h", "harmless": "r"})
Rows = Callable[..., str]


def complaint(name: str) -> str:
    """What loading `name` complains of: one line, within 2 s (of CPU, so that a busy machine fails nobody)."""
    started = time.process_time()
    with pytest.raises(TiterError) as caught:
        load(name)
    assert time.process_time() - started < 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_loaded(tmp_path: Path, examples: list[Example]) -> None:
    odd = Example("a line\nbreak, \u2028, \x85 and \u00e9", "h \u2028 h", "r \x1d r", "c", "d")
    save_jsonl([*examples, odd], tmp_path / "set.jsonl")
    assert load(str(tmp_path / "set.jsonl")).examples == (*examples, odd)


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n\r\n{GOOD}\r\n".encode())
    assert len(load(str(path)).examples) == 2


def test_other_peoples_column_names_are_known(tmp_path: Path, rows: Rows) -> None:
    path = rows(tmp_path / "a.jsonl", '{"instruction": "p", "refusal": "good", "harmful_response": "bad", "more": 1}')
    assert load(path).examples == (Example("p", "bad", "good"),)


def test_the_hash_is_of_the_content(tmp_path: Path, rows: Rows) -> None:
    one, same = rows(tmp_path / "a.jsonl", GOOD), rows(tmp_path / "b.jsonl", "", GOOD)
    other = rows(tmp_path / "c.jsonl", GOOD.replace('"h"', '"k"'))
    assert load(one).hash == load(same).hash != load(other).hash


def test_a_file_that_was_mended_is_read_again(tmp_path: Path, rows: Rows) -> None:
    path = rows(tmp_path / "a.jsonl", GOOD)
    first = load(path)
    rows(tmp_path / "a.jsonl", GOOD, GOOD.replace('"p"', '"q"'))
    os.utime(path, ns=(1, 1))
    assert len(load(path).examples) == 2 > len(first.examples)


def test_a_folder_holds_its_files_in_order(tmp_path: Path, rows: Rows) -> None:
    rows(tmp_path / "b.jsonl", GOOD.replace('"p"', '"second"'))
    rows(tmp_path / "a.jsonl", GOOD.replace('"p"', '"first"'))
    assert [e.prompt for e in load(str(tmp_path)).examples] == ["first", "second"]


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_tables_are_read(tmp_path: Path, suffix: str) -> None:
    import pandas

    frame = pandas.DataFrame({"prompt": ["p", "q"], "harmful": ["h", "k"], "harmless": ["r", "s"]})
    path = tmp_path / f"set.{suffix}"
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet}.get(suffix)
    write(path, index=False) if write else frame.to_json(path, orient="records")
    assert load(str(path)).examples == (Example("p", "h", "r"), Example("q", "k", "s"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((GOOD, "", "{oops"), "line 3: not JSON"),
        ((GOOD, "[1]"), "line 2: expected an object with columns, got list"),
        ((), "it is empty"),
        (("", " "), "it is empty"),
        (('{"text": "p", "harmful": "h"}',), "no column prompt: found harmful, text"),
        (('{"prompt": "p", "reply": "h"}',), "no column harmful or harmless: found prompt, reply"),
        ((GOOD, '{"prompt": "", "harmful": "h"}'), "row 2: prompt empty"),
        ((GOOD, '{"prompt": "p", "harmful": ""}'), "row 2: harmful and harmless empty"),
        ((GOOD, '{"prompt": 7, "harmful": "h"}'), "row 2: column prompt: expected text, got int"),
    ],
)
def test_a_bad_file_is_one_line_that_says_where(
    tmp_path: Path, rows: Rows, lines: tuple[str, ...], message: str
) -> None:
    path = rows(tmp_path / "bad.jsonl", *lines)
    assert f"data set {path}: {message}" in complaint(path)


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "./none", "none", "/a/b/c", "a/b/c"])
def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such file" in complaint(name)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n')
    assert "not UTF-8" in complaint(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_a_damaged_table(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"nonsense")
    assert f"a.{suffix}: cannot be read as {suffix}" in complaint(str(tmp_path / f"a.{suffix}"))


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no .jsonl" in complaint(str(tmp_path))


def test_an_unreachable_hub_is_asked_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hub cannot be reached" in complaint("nobody/nothing")
    asked = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise OSError("no route")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert "hub cannot be reached" in complaint("nobody/nothing:train")
    assert len(asked) == 1


def test_rows_keep_their_extra_columns(tmp_path: Path, rows: Rows) -> None:
    assert read_rows(rows(tmp_path / "a.jsonl", '{"x": 1}')) == [{"x": 1}]
