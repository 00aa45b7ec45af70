"""Claims: of all processes that share a folder, on one machine or several, one at a time works on a run.

A claim is the file `ROOT/runs/.claims/<id>.<generation>`, made with O_EXCL and holding who made it; its time of
change is the heartbeat. A dead claimer's run is taken over by making the next generation, never by deleting the
claim: of two that saw the same death one succeeds. Only a claim's owner removes it, and the dead ones below it.

A claimer that was taken for dead and wakes up again is late: its `Fence` no longer holds, and it must publish nothing.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from titer.schema.errors import TiterError

DEAD_AFTER = 120.0  # seconds without a heartbeat after which a claimer on another machine counts as dead
POLL = 0.25  # seconds between looks at a claim that someone else holds


@dataclass(frozen=True)
class Owner:
    """Who holds a claim. `host` names the machine, its boot and its process namespace: where `pid` means something.

    `started` is the process's start time in clock ticks since boot, so that a reused pid is not taken for the owner.
    `token` tells one claim of an owner from another; names of claims are used again.
    """

    host: str
    pid: int
    started: int
    token: str = field(default="", compare=False)


_tokens: dict[tuple[str, str], str] = {}  # (folder of claims, run) -> token of this process's claim


class Claims:
    """The claims under one folder. `dead_after` is in seconds and must be the same for all that share the folder."""

    def __init__(self, root: str | Path, dead_after: float = DEAD_AFTER) -> None:
        self.folder = Path(root) / "runs" / ".claims"
        self.dead_after = dead_after

    def claim(self, run_id: str) -> Path | None:
        """Claim a run: the claim's file, to be given to `release`; None when somebody alive holds it."""
        found = self._generations(run_id)
        if any(self.alive(path) for path in found.values()):
            return None
        mine, token = self.folder / f"{run_id}.{max(found, default=-1) + 1}", secrets.token_hex(8)
        if not _create(mine, json.dumps(asdict(replace(me(), token=token)))):
            return None
        # someone may have claimed, worked and released since the look above, and another be at it again
        if any(self.alive(path) for path in self._generations(run_id).values() if path != mine):
            mine.unlink(missing_ok=True)
            return None
        _tokens[self._key(run_id)] = token
        return mine

    def release(self, claim: Path) -> None:
        """Give a claim back, with the dead ones it took over from; nothing when it has become another's."""
        run_id, _, generation = claim.name.rpartition(".")
        token = _tokens.pop(self._key(run_id), "")
        if not self._holds(claim, token):
            return
        for number, path in sorted(self._generations(run_id).items()):
            if number <= int(generation):
                path.unlink(missing_ok=True)

    @contextmanager
    def beating(self, claim: Path) -> Iterator[None]:
        """Renew the claim while the block runs, and release it at the end."""
        ended, token = threading.Event(), _tokens.get(self._key(claim.name.rpartition(".")[0]), "")

        def beat() -> None:
            while not ended.wait(self.dead_after / 6):
                with suppress(OSError):  # a full or missing disk is met, and told, by the work itself
                    if self._holds(claim, token):
                        os.utime(claim)

        thread = threading.Thread(target=beat, name=f"claim {claim.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(OSError):
                self.release(claim)

    @contextmanager
    def waiting(self, run_id: str) -> Iterator[None]:
        """Hold the run's claim inside the block; waits as long as somebody alive holds it."""
        claim = self.claim(run_id)
        while claim is None:
            time.sleep(POLL)
            claim = self.claim(run_id)
        with self.beating(claim):
            yield

    def owner(self, run_id: str) -> Owner | None:
        """Who is working on a run now, if anybody alive is."""
        for path in self._generations(run_id).values():
            if self.alive(path):
                return _read(path)
        return None

    def held_by(self, pid: int) -> list[str]:
        """The runs that a process of this machine, alive or dead, has claims on."""
        owners = {path: _read(path) for path in self.folder.glob("*.*")} if self.folder.is_dir() else {}
        return [p.name.rpartition(".")[0] for p, o in owners.items() if o and (o.host, o.pid) == (me().host, pid)]

    def alive(self, claim: Path) -> bool:
        """Whether a claim's owner still runs: its process where it can be seen from here, else its heartbeat."""
        owner = _read(claim)  # opening the file first makes a network file system look at its time again
        try:
            beat = claim.stat().st_mtime
        except FileNotFoundError:
            return False
        if owner is not None and owner.host == me().host:
            return _started(owner.pid) == owner.started
        return self._clock() - beat < self.dead_after

    def fence(self, run_id: str) -> Fence:
        """What tells whether the work begun on a run now may still be published later.

        It is that of this process's claim; for a process that works for a claimer, that of the claim it finds.
        """
        return Fence(self, run_id, _tokens.get(self._key(run_id)) or self.newest(run_id))

    def newest(self, run_id: str) -> str:
        """The token of a run's newest claim, "" for none."""
        found = self._generations(run_id)
        owner = _read(found[max(found)]) if found else None
        return owner.token if owner else ""

    def _key(self, run_id: str) -> tuple[str, str]:
        return os.path.abspath(self.folder), run_id

    def _holds(self, claim: Path, token: str) -> bool:
        owner = _read(claim)
        return owner is not None and owner.token == token

    def _clock(self) -> float:
        """The time by the file server's clock, as heartbeats are: machines' own clocks may differ.

        This machine's where the folder can only be read. The file is looked at by its handle: another process of the
        same id, in another container, may use the same name.
        """
        path = self.folder / f".clock.{me().pid}"
        try:
            handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
        except OSError:
            return time.time()
        try:
            path.unlink(missing_ok=True)
            os.utime(handle)
            return os.fstat(handle).st_mtime
        finally:
            os.close(handle)

    def _generations(self, run_id: str) -> dict[int, Path]:
        numbered = (path for path in self.folder.glob(f"{run_id}.*"))
        return {int(end): path for path in numbered if (end := path.name.rpartition(".")[2]).isdigit()}


@dataclass(frozen=True)
class Fence:
    """Whether work on a run may be published: not once another has taken the run over. Without a claim it always may.

    Who takes over claims first and then moves away what is half written (`Store.sweep`), and a publish renames what it
    wrote: so a check that passes and is overtaken at once ends in a rename that fails.
    """

    claims: Claims
    run_id: str
    token: str

    def holds(self) -> bool:
        """Whether the newest claim of the run is still the one this work began under."""
        return not self.token or self.claims.newest(self.run_id) == self.token


def _create(path: Path, text: str) -> bool:
    """Make a file that must not exist yet; False when it does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise TiterError(f"{path.parent}: cannot be written: {error.strerror}: choose another folder") from error
    try:
        os.write(handle, text.encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise TiterError(f"{path}: cannot be written: {error.strerror}: free space") from error
    finally:
        os.close(handle)
    return True


def _read(path: Path) -> Owner | None:
    """The owner in a claim; None when it is gone, or was cut off before it was written."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**found)
    except (OSError, ValueError, TypeError):
        return None


def me() -> Owner:
    """This process, as the owner of claims."""
    return Owner(_host(), os.getpid(), _started(os.getpid()))


@lru_cache(maxsize=1)
def _host() -> str:
    places = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    boot = places[0].read_text().strip()[:8] if places[0].is_file() else ""
    namespace = os.readlink(places[1]) if places[1].is_symlink() else ""
    return "/".join(filter(None, (socket.gethostname(), boot, namespace)))


def _started(pid: int) -> int:
    """Start time of a process in clock ticks (0 where /proc does not tell); -1 when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except OSError as error:
        return 0 if error.errno == errno.EPERM else -1
    return 0
