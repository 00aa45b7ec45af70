"""A search's journal after kills, full disks and damage: the search goes on, or says in one line why not."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from test_search import BAR, PLAN, World, needle
from titer.campaigns.search.tpe import search
from titer.schema.errors import DiskTrouble, TiterError

FEW = replace(PLAN, max_trials=3)  # known settings only, so that every search finds the same


@pytest.fixture(scope="module")
def whole() -> Any:
    return search(World(needle), FEW, BAR)


def test_a_journal_cut_at_any_line_goes_on_with_the_trial_it_was_at(tmp_path: Path, whole: Any) -> None:
    path = tmp_path / "search.journal"
    search(World(needle), FEW, BAR, journal=path)
    lines, at = path.read_bytes().splitlines(keepends=True), 0
    for line in lines:
        for cut in (at, at + len(line) - 1):
            path.write_bytes(b"".join(lines)[:cut])
            assert search(World(needle), FEW, BAR, journal=path) == whole
        at += len(line)


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\0\n\0\n", b'{"op_code"', b"3\n"])
def test_what_a_stop_left_at_the_end_is_dropped(tmp_path: Path, whole: Any, tail: bytes) -> None:
    path = tmp_path / "search.journal"
    search(World(needle), FEW, BAR, journal=path)
    path.write_bytes(path.read_bytes() + tail)
    world = World(needle)
    assert search(world, FEW, BAR, journal=path) == whole and not world.calls


def test_a_lock_of_the_dead_is_removed_even_where_its_target_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    JournalFileSymlinkLock("out/search.journal").acquire()
    assert search(World(needle), FEW, BAR, journal="out/search.journal") == whole
    assert sorted(os.listdir("out")) == ["runs", "search.journal"]


DAMAGES = {
    "a line in the middle": lambda lines: [*lines[:2], b"oops\n", *lines[2:]],
    "lines of another program": lambda lines: [b"{}\n"],
    "another code": lambda lines: [json.dumps({**json.loads(lines[0]), "op_code": 99}).encode() + b"\n", *lines],
    "a trial of another shape": lambda lines: [line.replace(b'"rung"', b'"step"') for line in lines],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_one_line_and_stays(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "search.journal"
    search(World(needle), FEW, BAR, journal=path)
    path.write_bytes(b"".join(DAMAGES[damage](path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(TiterError, match=r"search.journal: damaged .*: remove it and search again") as caught:
        search(World(needle), FEW, BAR, journal=path)
    assert "\n" not in str(caught.value) and path.read_bytes().startswith(before[:100])


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_a_disk_that_fills_up_is_one_line_and_tears_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, after: int
) -> None:
    path, real, left = tmp_path / "search.journal", JournalFileBackend.append_logs, [after]

    def append(self: Any, logs: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            return real(self, logs)
        with path.open("ab") as stream:
            stream.write(b'{"op_code"')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)
    with pytest.raises(TiterError, match=r"search.journal: cannot be written: No space left on device: free space"):
        search(World(needle), FEW, BAR, journal=path)
    assert path.read_bytes()[-1:] in (b"", b"\n")
    monkeypatch.undo()
    assert search(World(needle), FEW, BAR, journal=path) == whole


def test_a_full_disk_is_no_trial(tmp_path: Path, whole: Any) -> None:
    def full(*_: Any) -> Any:
        raise DiskTrouble("out: cannot be written: No space left on device")

    with pytest.raises(DiskTrouble):
        search(full, FEW, BAR, journal=tmp_path / "search.journal")
    assert search(World(needle), FEW, BAR, journal=tmp_path / "search.journal") == whole


def test_two_searches_on_one_journal_take_turns(tmp_path: Path, whole: Any) -> None:
    path, begun, go_on = tmp_path / "search.journal", threading.Event(), threading.Event()
    first, second, found = World(needle), World(needle), []

    def slow(*given: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return first(*given)

    threads = [
        threading.Thread(target=lambda run=run: found.append(search(run, FEW, BAR, journal=path)))
        for run in (slow, second)
    ]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [whole, whole] and first.calls and not second.calls
