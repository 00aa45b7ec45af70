"""Claims: one owner at a time, the dead are taken over by exactly one, and nobody removes what is not theirs."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from titer.runs.locks import Claims, Owner, me
from titer.schema.errors import TiterError


def put(claims: Claims, name: str, owner: Owner, age: float = 0.0) -> Path:
    """A claim as another process would have left it, with its last heartbeat `age` seconds ago."""
    path = claims.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def gone() -> Owner:
    """A process of this machine that has ended."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return Owner(me().host, int(ended.stdout), 1)


def test_a_claim_is_held_by_one_until_released(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    mine = claims.claim("a")
    assert mine is not None and claims.owner("a") == me()
    assert claims.claim("a") is None
    assert claims.claim("b") is not None
    claims.release(mine)
    assert claims.owner("a") is None and claims.claim("a") is not None


def test_a_claimer_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    dead = put(claims, "a.0", gone())
    mine = claims.claim("a")
    assert mine is not None and mine.name == "a.1" and dead.exists()
    claims.release(mine)
    assert not list(claims.folder.iterdir())


def test_a_reused_pid_is_not_the_claimer(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    put(claims, "a.0", replace(me(), started=me().started - 1))
    assert claims.claim("a") is not None


@pytest.mark.parametrize(("age", "taken"), [(1.0, False), (100.0, True)])
def test_a_claimer_elsewhere_lives_by_its_heartbeat(tmp_path: Path, age: float, taken: bool) -> None:
    claims = Claims(tmp_path, dead_after=30.0)
    put(claims, "a.0", Owner("elsewhere", 1, 1), age)
    assert (claims.claim("a") is not None) == taken


@pytest.mark.parametrize(("age", "taken"), [(1.0, False), (100.0, True)])
def test_a_claim_cut_off_while_written_waits_for_its_age(tmp_path: Path, age: float, taken: bool) -> None:
    claims = Claims(tmp_path, dead_after=30.0)
    path = put(claims, "a.0", me(), age)
    path.write_text('{"host": "h')
    os.utime(path, (time.time() - age, time.time() - age))
    assert (claims.claim("a") is not None) == taken


def test_late_news_of_a_death_does_not_give_a_second_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looked before another took over and lists again only after creating must notice and step back."""
    claims = Claims(tmp_path)
    put(claims, "a.0", gone())
    stale = claims._generations("a")
    put(claims, "a.3", me())
    looks = iter([stale])
    real = claims._generations
    monkeypatch.setattr(claims, "_generations", lambda run_id: next(looks, None) or real(run_id))
    assert claims.claim("a") is None
    assert sorted(p.name for p in claims.folder.iterdir()) == ["a.0", "a.3"]


def test_the_heartbeat_renews_and_ends_with_a_release(tmp_path: Path) -> None:
    claims = Claims(tmp_path, dead_after=0.12)
    mine = claims.claim("a")
    assert mine is not None
    before = mine.stat().st_mtime
    with claims.beating(mine):
        time.sleep(0.15)
        assert mine.stat().st_mtime > before
    assert not mine.exists()


def _contend(root: str, log: str, start: Any) -> None:
    claims = Claims(root)
    start.wait()
    for _ in range(40):
        mine = claims.claim("a")
        if mine is None:
            continue
        with open(log, "a") as stream:
            stream.write(f"in {os.getpid()}\n")
        time.sleep(0.001)
        with open(log, "a") as stream:
            stream.write(f"out {os.getpid()}\n")
        claims.release(mine)


def test_processes_that_contend_never_hold_together(tmp_path: Path) -> None:
    put(Claims(tmp_path), "a.0", gone())
    context, log = multiprocessing.get_context("spawn"), tmp_path / "log"
    start = context.Event()
    crew = [context.Process(target=_contend, args=(str(tmp_path), str(log), start)) for _ in range(3)]
    for process in crew:
        process.start()
    start.set()
    for process in crew:
        process.join()
    lines = log.read_text().splitlines()
    assert len(lines) >= 4
    assert all(
        a.split()[0] == "in" and b == a.replace("in", "out") for a, b in zip(lines[::2], lines[1::2], strict=True)
    )


def test_two_processes_of_one_id_in_two_containers_tell_the_time_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the other does with the clock's file, and when: each reads its own."""
    claims = Claims(tmp_path, dead_after=30.0)
    put(claims, "a.0", Owner("elsewhere", 1, 1), age=1.0)
    real = os.utime

    def other(handle: Any, *times: Any) -> None:
        for path in claims.folder.glob(".clock*"):
            path.unlink()
        real(handle, *times)

    monkeypatch.setattr(os, "utime", other)
    for name in ("touch", "stat"):
        monkeypatch.setattr(Path, name, _vanishing(getattr(Path, name), claims.folder / f".clock.{os.getpid()}"))
    assert claims.owner("a") is not None
    assert not list(claims.folder.glob(".clock*"))


def _vanishing(real: Any, victim: Path) -> Any:
    def call(path: Path, *arguments: Any, **options: Any) -> Any:
        found = real(path, *arguments, **options)
        if path == victim:
            victim.unlink(missing_ok=True)
        return found

    return call


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_who_works_can_be_seen_in_a_folder_that_can_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    claims = Claims(tmp_path, dead_after=30.0)
    put(claims, "a.0", Owner("elsewhere", 1, 1), age=1.0)
    put(claims, "b.0", Owner("elsewhere", 1, 1), age=100.0)
    real = os.open

    def refuse(path: Any, flags: int, *mode: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert claims.owner("a") is not None and claims.owner("b") is None
    with pytest.raises(TiterError, match=f"cannot be written: {os.strerror(number)}"):
        claims.claim("b")


def test_a_claim_that_became_anothers_is_neither_renewed_nor_released(tmp_path: Path) -> None:
    claims = Claims(tmp_path, dead_after=0.06)
    mine = claims.claim("a")
    assert mine is not None
    with claims.beating(mine):
        mine.unlink()
        theirs = put(claims, "a.0", Owner("elsewhere", 1, 1, "theirs"), age=50.0)
        before = theirs.stat().st_mtime
        time.sleep(0.1)
        assert theirs.stat().st_mtime == before
    assert theirs.exists()


def test_a_fence_holds_until_another_claims_and_never_again(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.fence("a").holds()  # nobody to be fenced from
    mine = claims.claim("a")
    fence = claims.fence("a")
    assert mine is not None and fence.holds()
    taken = put(claims, "a.1", Owner("elsewhere", 1, 1, "theirs"))
    assert not fence.holds()
    taken.unlink()
    mine.unlink()
    assert not fence.holds()
    put(claims, "a.0", Owner("elsewhere", 1, 1, "a third"))
    assert not fence.holds()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", '{"host": 1}', '{"host": "h", "pid": "x", "started": []}', "["]
)
def test_a_claim_of_another_shape_lives_by_its_age(tmp_path: Path, text: str) -> None:
    claims = Claims(tmp_path, dead_after=30.0)
    path = put(claims, "a.0", me())
    path.write_text(text)
    assert claims.claim("a") is None
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert claims.claim("a") is not None
