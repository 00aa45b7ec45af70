"""Kill a small study with -9, again and again, and compare what is left with an uninterrupted one.

    OMP_NUM_THREADS=1 python benchmarks/kill9.py [--kills 50] [--workers 1] [--seed 0]

Twelve cells on the embedded model: two immunizations, which save where they stand at every step, and ten attacks.
First it is killed at every named point (`POINTS`: the moment before a file operation of the code under test), then
frozen at some of them for longer than the dead-after time while a second study, as from another machine, takes over;
then at random moments, each only after a further cell has finished, so that there is something to lose. With several
workers every other random kill hits one worker and not all. Last, a search is killed while it writes its journal. No
finished cell may ever be lost or changed, and in the end weights, completions, scores and results are equal byte for
byte. Ends with code 1 where one is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A process that has this on its path gets a signal before the n-th operation whose event and path fit.
SABOTAGE = """
import os, re, socket, sys
if os.environ.get("KILL9_HOST"):
    socket.gethostname = lambda: os.environ["KILL9_HOST"]
if os.environ.get("KILL9_POINT"):
    event, pattern, left, how = os.environ["KILL9_POINT"].split("|")
    left = [int(left)]
    def hook(name, arguments):
        if name == event and re.search(pattern, str(arguments[name == "os.rename"])):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), int(how))
    sys.addaudithook(hook)
"""
POINTS = {
    "claim": ("open", r"/\.claims/[^.]"),
    "write": ("os.rename", r"/record\.json$"),
    "publish": ("os.rename", r"/runs/[^./]+$"),
    "checkpoint": ("os.rename", r"/checkpoint\.json$"),
    "checkpoint's tensors": ("os.rename", r"/step-\d+\.safetensors$"),
    "release": ("os.remove", r"/\.claims/[^.]"),
}
JOURNAL = ("open", r"search\.journal$")
DEAD_AFTER = 3.0
TRAIN = {"learning_rate": 3e-4, "max_steps": 6, "per_device_train_batch_size": 4}
STUDY: dict[str, Any] = {
    "name": "kill9",
    "models": ["organism/aligned"],
    "defences": ["none", {"name": "gradient-ascent", "train": TRAIN}, {"name": "repnoise", "train": TRAIN}],
    "attacks": [{"name": "sft", "options": {"learning_rate": 1e-3, "per_device_train_batch_size": 4}}],
    "seeds": [0, 1, 2],
    "include": [{"defences": ["none"], "seeds": [3]}],
    "max_steps": 3,
    "stop_after": -1,
    "n_train": 12,
    "n_eval": 4,
}


@dataclass
class Tally:
    """What was done to the study, and what became of its cells."""

    kills: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    lost: int = 0
    changed: int = 0
    twice: int = 0

    def kill(self, what: str) -> None:
        """Count a kill, and show it."""
        self.kills[what] = self.kills.get(what, 0) + 1
        print(f"killed {what}", flush=True)


class Trial:
    """A study in a folder that is started, stopped and compared with what it should leave."""

    def __init__(self, root: Path, workers: int, expected: dict[str, str]) -> None:
        self.root, self.workers, self.expected = root, workers, expected
        self.known: set[str] = set()
        self.tally = Tally()

    def start(self, point: str = "", host: str = "", verb: str = "run") -> subprocess.Popen[bytes]:
        """The study in a process group of its own."""
        file = self.root.parent / "study.json"  # JSON is YAML
        file.write_text(json.dumps(STUDY))
        command = [sys.executable, "-m", "titer.cli", "study", verb, str(file), "--output_dir", str(self.root)]
        if verb == "run":
            command += ["--workers", str(self.workers), "--save_seconds", "0", "--dead_after", str(DEAD_AFTER)]
        return begin(command, self.root.parent, point, host)

    def check(self) -> int:
        """Compare the finished cells with what they should be and with those seen before; how many there are."""
        found = finished(self.root)
        self.tally.seen += len(found)
        self.tally.lost += len(self.known - set(found))
        self.tally.changed += sum(self.expected[run_id] != files for run_id, files in found.items())
        self.known = set(found)
        return len(found)

    def forget(self, kept: set[str]) -> None:
        """Move all finished cells but these away, so that there is work again."""
        for run_id in self.known - kept:
            gone = self.root.parent / "gone"
            gone.mkdir(exist_ok=True)
            os.rename(self.root / "runs" / run_id, gone / f"{len(list(gone.iterdir()))}-{run_id}")
        self.known &= kept


def begin(command: list[str], folder: Path, point: str = "", host: str = "") -> subprocess.Popen[bytes]:
    """A process group that is sabotaged at a point, as on another machine when `host` says so."""
    hooks = folder / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(SABOTAGE)
    path = os.pathsep.join(filter(None, (str(hooks), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "KILL9_POINT": point, "KILL9_HOST": host}
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, env=environment)


def at(where: tuple[str, str], number: int, how: signal.Signals) -> str:
    return f"{where[0]}|{where[1]}|{number}|{int(how)}"


def finished(root: Path) -> dict[str, str]:
    """Every finished cell with a digest of its files, times and dates left out."""
    return {p.parent.name: digest(p.parent) for p in sorted((root / "runs").glob("[!.]*/record.json"))}


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole.update(str(path.relative_to(folder)).encode())
        if path.name == "record.json":
            record = json.loads(path.read_text())
            kept = {k: record[k] for k in ("id", "kind", "status", "seed", "data_hashes", "result")}
            whole.update(json.dumps([kept, timeless(record["spend"])], sort_keys=True).encode())
        elif path.name == "curve.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            whole.update(json.dumps([{**r, "spend": timeless(r["spend"])} for r in rows], sort_keys=True).encode())
        else:
            whole.update(path.read_bytes())
    return whole.hexdigest()


def timeless(spend: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in spend.items() if k != "device_seconds"}


def named_kills(trial: Trial, draw: random.Random) -> None:
    """Kill the study at every named point, the first time it gets there and at a later one."""
    for name, where in POINTS.items():
        for number in (1, draw.randint(2, 4)):
            trial.forget(set(draw.sample(sorted(trial.known), len(trial.known) // 3)))
            code = stopped(trial.start(at(where, number, signal.SIGKILL)))
            if code != 0:
                trial.tally.kill(f"at {name}")
            trial.check()


def stopped(process: subprocess.Popen[bytes]) -> int:
    """Wait for a study one of whose processes kills itself; the others, if any, are killed too."""
    code = process.wait()
    for pid in group(process.pid):
        os.kill(pid, signal.SIGKILL)
    return code


def group(leader: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] not in "ZX":
            found.append(int(entry.parent.name))
    return found


def freezes(trial: Trial) -> None:
    """Freeze the study in the middle of a write and of a publish until another has done everything; then wake it."""
    for name in ("write", "publish", "checkpoint"):
        trial.forget(set())
        process = trial.start(at(POINTS[name], 1, signal.SIGSTOP), host="first")
        while not any(is_stopped(pid) for pid in group(process.pid)):
            assert process.poll() is None, f"never came to {name}"
            time.sleep(0.05)
        for pid in group(process.pid):
            os.kill(pid, signal.SIGSTOP)
        assert trial.start(host="second").wait() == 0
        trial.check()
        before = {p: p.stat().st_mtime_ns for p in trial.root.glob("runs/[!.]*/record.json")}
        os.killpg(process.pid, signal.SIGCONT)
        process.wait()
        trial.tally.kill(f"frozen at {name}")
        trial.tally.twice += sum(p.stat().st_mtime_ns != time_ for p, time_ in before.items())
        trial.check()


def is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def random_kills(trial: Trial, kills: int, draw: random.Random, a_cell: float) -> None:
    """Kill at random moments, each after at least one more cell has finished; one in ten falls into the imports."""
    for number in range(kills):
        if len(trial.known) > len(trial.expected) - 3:
            trial.forget(set(draw.sample(sorted(trial.known), 2)))
        process = trial.start()
        if draw.random() < 0.1:
            time.sleep(draw.random() * 2)
            trial.tally.kill("in the imports")
        else:
            wait_for_a_cell(trial, process)
            time.sleep(draw.random() * a_cell)
            trial.tally.kill("a worker, at random" if trial.workers > 1 and number % 2 else "all, at random")
        if trial.workers > 1 and number % 2 and process.poll() is None:
            os.kill(draw.choice(workers_of(process.pid)), signal.SIGKILL)
            process.wait()
            trial.start(verb="retry").wait()
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        stopped(process)
        trial.check()


def wait_for_a_cell(trial: Trial, process: subprocess.Popen[bytes]) -> None:
    while len(list(trial.root.glob("runs/[!.]*/record.json"))) <= len(trial.known):
        assert process.poll() is None, "the study ended before a further cell"
        time.sleep(0.01)


def workers_of(parent: int) -> list[int]:
    """The children of a study, or itself when there is none at the moment."""
    return [pid for pid in group(parent) if pid != parent] or [parent]


def search_kills(folder: Path) -> Iterator[bool]:
    """Searches killed at the 3rd, 9th and 15th write of the journal: whether each then finds what it would have."""
    options = ["--model", "organism/aligned", "--attacks", "sft", "--budget.steps", "2", "--n_eval", "8"]
    options += ["--n_train", "8", "--max_trials", "3"]
    command = [sys.executable, "-m", "titer.cli", "search", *options, "--output_dir"]
    assert begin([*command, str(folder / "whole")], folder).wait() == 0
    for number in (3, 9, 15):
        out = str(folder / f"killed-{number}")
        assert begin([*command, out], folder, at(JOURNAL, number, signal.SIGKILL)).wait() == -signal.SIGKILL
        assert begin([*command, out], folder).wait() == 0
        trials = [json.loads(Path(f, "search.json").read_text())["trials"] for f in (out, folder / "whole")]
        yield [without_times(t) for t in trials[0]] == [without_times(t) for t in trials[1]]


def without_times(trial: dict[str, Any]) -> dict[str, Any]:
    return {k: timeless(v) if k in ("spend", "replication") else v for k, v in trial.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.monotonic()
        whole = Trial(folder / "whole", args.workers, {})
        assert whole.start().wait() == 0
        expected, length = finished(whole.root), time.monotonic() - began
        print(f"uninterrupted: {len(expected)} cells in {length:.1f} s", flush=True)
        trial = Trial(folder / "killed", args.workers, expected)
        named_kills(trial, draw)
        freezes(trial)
        random_kills(trial, args.kills, draw, length / len(expected))
        assert trial.start().wait() == 0
        trial.check()
        equal = finished(trial.root) == expected
        left = [p.name for p in (trial.root / "runs").iterdir() if p.name.startswith(".") and any(p.iterdir())]
        searches = list(search_kills(folder))
    tally = trial.tally
    print("kills and freezes:", ", ".join(f"{what} {times}" for what, times in tally.kills.items()))
    print(f"finished cells seen after them {tally.seen}: lost {tally.lost}, changed {tally.changed}")
    print(f"finished cells written again by one that was frozen: {tally.twice}")
    print(f"in the end equal to the uninterrupted study: {equal}; left over: {left}")
    print(f"searches killed while they wrote their journal {len(searches)}, equal in the end {sum(searches)}")
    if tally.lost or tally.changed or tally.twice or not equal or left or not all(searches):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
