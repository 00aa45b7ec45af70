"""How long the near-duplicate audit takes on synthetic prompts: `python benchmarks/audit.py [ROWS]` (default 300000).

Two kinds of data: prompts of 5 to 40 words drawn from a Zipf-like vocabulary, and prompts of one template of 15 words
with three of 100 words each. A known number of rows of the second set repeat one of the first exactly, or but for the
last word (a near duplicate). Prints time, peak memory and what was found beside what was planted.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable

from titer.data.audit import audit
from titer.schema.types import Example

VOCABULARY = 30_000
PLANTED = 0.01  # of the second set, exact and near each
GOAL_SECONDS = 60.0


def rows(n: int, rng: random.Random) -> list[str]:
    words = [f"word{i}" for i in range(VOCABULARY)]
    weights = [1 / (i + 10) for i in range(VOCABULARY)]
    pool = iter(rng.choices(words, weights, k=40 * n))
    return [" ".join(next(pool) for _ in range(rng.randint(5, 40))) for _ in range(n)]


def planted(texts: list[str], count: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """`count` exact copies of rows, and `count` rows with the last word changed, long enough to stay near."""
    long = [t for t in texts if len(t.split()) >= 20]
    near = [f"{t.rsplit(' ', 1)[0]} changed" for t in rng.sample(long, count)]
    return rng.sample(texts, count), near


def templated(n: int, rng: random.Random) -> list[str]:
    def one() -> str:
        a, b, c = (rng.randrange(100) for _ in range(3))
        return f"please tell me in plain words how a{a} is brought to b{b} when c{c} is late and the road is closed"

    return [one() for _ in range(n)]


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    for kind, make in (("Zipf", rows), ("one template", templated)):
        measure(kind, make, n)


def measure(kind: str, make: Callable[[int, random.Random], list[str]], n: int) -> None:
    rng = random.Random(0)
    left = make(n // 2, rng)
    count = int(PLANTED * n / 2)
    exact, near = planted(left, count, rng)
    right = make(n - n // 2 - 2 * count, rng) + exact + near
    sets = {"left": [Example(p, "", "r") for p in left], "right": [Example(p, "", "r") for p in right]}
    wall, cpu = time.perf_counter(), time.process_time()
    (found,) = audit(sets)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{kind}, {n} rows: {wall:.1f} s ({cpu:.1f} s of CPU), peak {peak:.2f} GiB, goal {GOAL_SECONDS:.0f} s")
    print(f"exact {found.exact} (planted {count}), near {found.near} (planted {count})")


if __name__ == "__main__":
    main()
