"""What a study costs beyond its training: cells per hour with 1 and 2 workers, overhead per cell, memory.

    python benchmarks/throughput.py [--steps 20] [--cells 12]

Attacks on the embedded model, no early stop, graded at the start and at the end. The overhead of a cell is its wall
time without training and without grading; cells without steps, graded once, tell the two apart. Cells are counted from
the first finished one to the last; start-up is given apart as the time to the first result. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from titer.campaigns.study.file import parse_study
from titer.runs.queue import Board, run_study


def study(steps: int, cells: int) -> Any:
    """Attacks of the undefended embedded model that differ in their seed."""
    return parse_study(
        {
            "models": ["organism/aligned"],
            "attacks": [{"name": "sft", "options": {"learning_rate": 1e-3}}],
            "seeds": list(range(cells)),
            "max_steps": steps,
            "plan": [0, steps],
            "stop_after": -1,
            "n_eval": 24,
        }
    )


def resident(workers: int) -> float:
    """Memory of the largest worker now, MB; a single worker is this process."""
    found = [0.0]
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        whose = int(fields["Pid"] if workers == 1 else fields["PPid"])
        if whose == os.getpid() and "VmRSS" in fields:
            found.append(int(fields["VmRSS"].split()[0]) / 1024)
    return max(found)


def measure(steps: int, cells: int, workers: int) -> tuple[Board, list[float], float, float]:
    """The board, when each cell was first seen done (seconds), load before, and the largest worker (MB)."""
    planned = study(steps, cells)
    times: list[float] = []
    peak = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                peak[0] = max(peak[0], resident(workers))

        thread = threading.Thread(target=watch)
        thread.start()
        load, started = os.getloadavg()[0], time.monotonic()

        def seen(board: Board) -> None:
            times.extend([time.monotonic() - started] * (board.counts()["done"] - len(times)))

        board = run_study(planned.cells, folder, workers=workers, seen=seen)
        ended.set()
        thread.join()
        for i in range(len(board.cells)):
            assert board.record(i) is not None
    return board, times, load, peak[0]


def split(rest: float, bare: float) -> tuple[float, float]:
    """A probe and the overhead of a cell, from a cell's time without training (two probes) and one without steps."""
    return rest - bare, 2 * bare - rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cells", type=int, default=12)
    args = parser.parse_args()
    if args.cells < 6:
        parser.error("--cells: fewer than 6 do not tell a rate from a start-up")
    rates = {}
    for workers in (1, 2):
        board, times, load, peak = measure(args.steps, args.cells, workers)
        bare, _, _, _ = measure(0, 4 * workers, workers)  # the first of each worker loads the model
        records = [r for i in range(len(board.cells)) if (r := board.record(i)) is not None]
        wall = statistics.median(board.seconds.values())
        training = statistics.median(r.spend.device_seconds for r in records)
        probe, overhead = split(wall - training, statistics.median(bare.seconds.values()))
        rates[workers] = 3600 * (len(times) - 1) / (times[-1] - times[0])
        print(
            f"workers {workers}: {rates[workers]:.0f} cells/h; first result {times[0]:.1f} s; cell {wall:.2f} s, "
            f"of it training {training:.2f} s, two probes {2 * probe:.2f} s, overhead {overhead:.2f} s; "
            f"largest worker {peak:.0f} MB; load before {load:.1f}",
            flush=True,
        )
    if load > 1:
        print("the machine was busy: none of these numbers is to be quoted")
    print(f"2 workers against 1: {rates[2] / rates[1]:.2f}x on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
