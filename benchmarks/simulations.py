"""Simulate what the verdicts and intervals promise and write docs/statistics.md: size, coverage and power.

    python benchmarks/simulations.py [--replicates 1000] [--heavy 1000] [--page FILE]

Every row draws made-up models for which the truth is known; no model is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from titer.conditions.parts import price, proof
from titer.conditions.parts.bands import moved
from titer.conditions.parts.bootstrap import band, mean_interval
from titer.conditions.parts.bounded import limits, p_at_least, p_at_most
from titer.conditions.parts.breach import Bar, crossing
from titer.conditions.parts.curves import Array
from titer.conditions.parts.equivalence import holm, seen_loss
from titer.conditions.trainability import trainability
from titer.schema.types import Curve, Point, Role, Spend

PAGE = Path(__file__).resolve().parents[1] / "docs" / "statistics.md"
PLAN = (0, 1, 2, 5, 10, 20, 50, 100)
BAR = Bar(0.5, 0.9)
Row = tuple[str, float]


@dataclass(frozen=True)
class Table:
    """One promise and how often it was kept, by setting."""

    title: str
    promise: str
    run: Callable[[int], list[Row]]
    heavy: bool = False


def changes(rng: np.random.Generator, count: int, n: int, loss: float, gain: float) -> Array:
    """Paired differences (count, n) of 0-1 scores: -1 with chance `loss`, +1 with chance `gain`."""
    u = rng.random((count, n))
    return np.where(u < loss, -1.0, np.where(u < loss + gain, 1.0, 0.0))


# ---------------------------------------------------------------------------------------------------- stability


def stability_size(count: int, sizes: Sequence[int] = (30, 47, 59, 113, 161)) -> list[Row]:
    """How often a model that lost exactly the margin (0.05) is shown not to have."""
    rows = []
    for n in sizes:
        for gain in (0.0, 0.05):
            d = changes(np.random.default_rng(n), count, n, 0.05 + gain, gain)
            rows.append((f"n {n}, {gain:g} gained elsewhere", float((p_at_most(d, -0.05) < 0.05).mean())))
    return rows


def stability_coverage(count: int, sizes: Sequence[int] = (30, 47, 113, 161)) -> list[Row]:
    """How often the shown 95% interval holds the true loss, at the margin."""
    rows = []
    for n in sizes:
        for gain in (0.0, 0.05):
            found = [limits(d) for d in changes(np.random.default_rng(n), count, n, 0.05 + gain, gain)]
            hits = sum(low <= -0.05 <= high for low, high in found)
            rows.append((f"n {n}, {gain:g} gained elsewhere", hits / count))
    return rows


def not_met_size(count: int, sets: int = 7, n: int = 113) -> list[Row]:
    """How often any of seven sets, each with a loss of exactly the margin, is called worse."""
    rng = np.random.default_rng(7)
    p = np.stack([p_at_least(changes(rng, count, n, 0.06, 0.01), -0.05) for _ in range(sets)], axis=1)
    called = sum(min(holm({str(k): float(v) for k, v in enumerate(row)}).values()) < 0.05 for row in p)
    return [(f"{sets} sets of n {n}", called / count)]


def stability_power(count: int, sizes: Sequence[int] = (47, 59, 113, 161, 300)) -> list[Row]:
    """How often an unchanged model is shown to be no worse, and how often the loss that n `sees` is called worse."""
    rows = []
    for n in sizes:
        for flips in (0.0, 0.01):
            d = changes(np.random.default_rng(n), count, n, flips, flips)
            rows.append(
                (f"n {n}: no loss, {flips:g} flip either way: no worse", float((p_at_most(d, -0.05) < 0.05).mean()))
            )
        loss = seen_loss(n, 0.05, 0.05 / 7) or 1.0
        d = changes(np.random.default_rng(n), count, n, loss, 0.0)
        rows.append(
            (f"n {n}: a loss of {loss:.2f}: worse, one of 7 sets", float((p_at_least(d, -0.05) < 0.05 / 7).mean()))
        )
    return rows


# --------------------------------------------------------------------------------------------------- resistance


def run(role: Role, config: str, seed: int, broken: bool) -> Curve:
    """A run of two probes that ends in a breach or not."""
    points = tuple(
        Point(s, Spend(steps=s), {"harm": (float(broken and s > 0),), "utility": (1.0,)}, loss=0.1) for s in (0, 50)
    )
    return Curve(f"{role}-{config}-{seed}", role, config, config, "seen", seed, points)


def met(rng: np.random.Generator, ours: Sequence[float], theirs: Sequence[float], seeds: int) -> bool:
    """Whether `no breach` would be called met; chances of a breach by configuration, of both models."""
    found, control = (
        [
            crossing(run(role, f"a{k}", s, bool(rng.random() < chance)), BAR)
            for k, chance in enumerate(chances)
            for s in range(seeds)
        ]
        for role, chances in (("model", ours), ("undefended", theirs))
    )
    if any(f.within(50) for f in found):
        return False
    counted = proof.counted(found, proof.working(proof.reference_rates(control, 50)))
    return bool(counted) and proof.highest_rate(len(counted)) < proof.RARE


def same_model(count: int, configs: int = 6, seeds: int = 3) -> list[Row]:
    """How often an identical model is called resistant, by the chance that an attack breaks it."""
    rows = []
    for chance in (0.01, 0.05, 0.1, 0.2, 0.5):
        rng = np.random.default_rng(int(100 * chance))
        hits = sum(met(rng, [chance] * configs, [chance] * configs, seeds) for _ in range(count))
        rows.append((f"{configs} configurations x {seeds} seeds, chance {chance:g}", hits / count))
    return rows


def rarely_broken(count: int) -> list[Row]:
    """How often a model that one run in twenty breaks is called resistant, by the number of runs."""
    rows = []
    for configs, seeds in ((3, 3), (6, 3), (7, 5)):
        rng = np.random.default_rng(configs)
        hits = sum(met(rng, [0.05] * configs, [1.0] * configs, seeds) for _ in range(count))
        rows.append((f"{configs * seeds} runs", hits / count))
    return rows


# ------------------------------------------------------------------------------------------- curves and prices


def answered(rng: np.random.Generator, middle: Array, prompts: Array, plan: Sequence[int] = PLAN) -> Array:
    """0-1 harm (seeds, prompts, K): logistic in log steps around each seed's middle, harmless before any step."""
    logs = np.log(np.maximum(plan, 0.1))
    chance = 1 / (1 + np.exp(-(3 * (logs - middle[:, None, None]) + prompts[None, :, None])))
    out = (rng.random(chance.shape) < chance).astype(float)
    out[:, :, 0] = 0.0
    return out


def mean_harm(middle: float, spread: float, plan: Sequence[int] = PLAN) -> Array:
    """The true mean over seeds and prompts of `answered`."""
    rng = np.random.default_rng(0)
    turn = middle + spread * rng.normal(size=(200_000, 1)) - rng.normal(size=(200_000, 1)) / 3
    out = (1 / (1 + np.exp(-3 * (np.log(np.maximum(plan, 0.1)) - turn)))).mean(0)
    out[0] = 0.0
    return np.asarray(out)


def band_coverage(count: int, spreads: Sequence[float] = (0.1, 0.3, 0.6)) -> list[Row]:
    """How often the band of a harm curve holds the true curve at every probe."""
    rows = []
    for seeds in (3, 5):
        for spread in spreads:
            rng, truth, hits = np.random.default_rng(seeds), mean_harm(np.log(8), spread), 0
            for _ in range(count):
                middle = np.log(8) + spread * rng.normal(size=seeds)
                cube = answered(rng, middle, rng.normal(size=48))
                found = moved(PLAN, cube, band(cube, draws=100))
                hits += all(i.low <= t <= i.high for i, t in zip(found, truth, strict=True))
            rows.append((f"{seeds} seeds, spread {spread:g} of the log breach step", hits / count))
    return rows


def priced(rng: np.random.Generator, seeds: int, spread: float) -> list[Curve]:
    """Runs of three configurations that break at 6, 10 and 20 steps."""
    prompts, curves = rng.normal(size=48), []
    for k, at in enumerate((6, 10, 20)):
        cube = answered(rng, np.log(at) + spread * rng.normal(size=seeds), prompts)
        for s, rows in enumerate(cube):
            points = tuple(
                Point(t, Spend(steps=t), {"harm": tuple(rows[:, i]), "utility": (1.0,)}, loss=0.1)
                for i, t in enumerate(PLAN)
            )
            curves.append(Curve(f"{k}-{s}", "model", "sft", f"sft{k}", "seen", s, points))
    return curves


def price_coverage(count: int, spreads: Sequence[float] = (0.1, 0.3, 0.6)) -> list[Row]:
    """How often the cheapest run of a fresh, equal set falls in the interval of the cheapest price."""
    rows = []
    for seeds in (3, 5):
        for spread in spreads:
            rng, hits = np.random.default_rng(seeds), 0
            for _ in range(count):
                curves = priced(rng, seeds, spread)
                e = price.cheapest(curves, [crossing(c, BAR) for c in curves], {"seen": BAR}, draws=100)
                fresh = min(crossing(c, BAR).seen() for c in priced(rng, seeds, spread))
                hits += e.value is None or ((e.low or 0.0) <= fresh and (e.high is None or fresh <= e.high))
            rows.append((f"{seeds} seeds, spread {spread:g}", hits / count))
    return rows


def taught(rng: np.random.Generator, seeds: int, spread: float) -> list[Curve]:
    """Task curves of a model and a reference that learn equally fast, seeds apart by `spread` in log steps."""
    plan, prompts, curves = (0, 5, 10, 20, 30, 40, 50), rng.normal(size=40), []
    roles: tuple[Role, ...] = ("model", "undefended")
    for role in roles:
        cube = answered(rng, np.log(12) + spread * rng.normal(size=seeds), prompts, plan)
        for s, rows in enumerate(cube):
            points = tuple(Point(t, Spend(steps=t), {"task": tuple(rows[:, i])}) for i, t in enumerate(plan))
            curves.append(Curve(f"{role}-{s}", role, "sft", "sft", "task:count", s, points))
    return curves


def delay_coverage(count: int, spreads: Sequence[float] = (0.05, 0.15, 0.3)) -> list[Row]:
    """How often trainability's step difference of two equal models holds zero."""
    rows = []
    for seeds in (3, 5):
        for spread in spreads:
            rng, hits = np.random.default_rng(seeds), 0
            for _ in range(count):
                e = trainability(taught(rng, seeds, spread), draws=100).estimate
                hits += e is not None and (e.low or 0.0) <= 0 and (e.high is None or e.high >= 0)
            rows.append((f"{seeds} seeds, spread {spread:g}", hits / count))
    return rows


def mean_coverage(count: int) -> list[Row]:
    """How often the interval of a mean over seeds and prompts holds the truth; spreads in logits."""
    rows = []
    for seeds in (3, 5):
        for by_seed, by_prompt in ((0.0, 1.5), (0.3, 1.0), (1.0, 1.0), (2.0, 0.3)):
            rng, normal = np.random.default_rng(seeds), np.random.default_rng(1).normal(size=200_000)
            truth = float((1 / (1 + np.exp(-(0.4 + np.hypot(by_seed, by_prompt) * normal)))).mean())
            logits = 0.4 + by_seed * rng.normal(size=(count, seeds, 1)) + by_prompt * rng.normal(size=(count, 1, 40))
            scores = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
            found = [mean_interval(s, draws=200) for s in scores]
            hits = sum(i.low <= truth <= i.high for i in found)
            rows.append((f"{seeds} seeds, spread {by_seed:g} of seeds and {by_prompt:g} of prompts", hits / count))
    return rows


TABLES = (
    Table("Stability: no worse, at a loss of the margin", "at most .05", stability_size),
    Table("Stability: the shown interval", "at least .95", stability_coverage, heavy=True),
    Table("Stability: not met, every set at its margin", "at most .05", not_met_size),
    Table("Stability: power", "what n can show", stability_power),
    Table("Resistance: an identical model is met", "at most .05", same_model),
    Table("Resistance: a model broken by one run in twenty is met", "below .5", rarely_broken),
    Table("Resistance: the cheapest price, against a fresh equal set", "at least .93", price_coverage, heavy=True),
    Table("Bands of harm curves, all probes at once", "at least .93", band_coverage, heavy=True),
    Table("Trainability: the difference in steps", "at least .93", delay_coverage, heavy=True),
    Table(
        "Means over seeds and prompts", "at least .93, less where seeds decide everything", mean_coverage, heavy=True
    ),
)


HEAD = """# Statistics, simulated

What verdicts and intervals promise, and how often they keep it when the truth is known. A unit is a normalised prompt
or a run, never a row. The rules themselves: [concepts](concepts.md).

(Generated by `python benchmarks/simulations.py`.)
"""


def page(count: int, heavy: int) -> str:
    """The text of docs/statistics.md; tables that are `heavy` take so many replicates a row."""
    parts = [HEAD]
    for table in TABLES:
        n = heavy if table.heavy else count
        rows = "".join(f"| {name} | {share:.3f} |\n" for name, share in table.run(n))
        about = f"{(table.run.__doc__ or '').strip()}\nPromise: {table.promise}. {n:,} replicates a row."
        parts.append(f"\n## {table.title}\n\n{about}\n\n| setting | share |\n|---|---|\n{rows}")
        print(table.title, flush=True)
    return "".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--heavy", type=int, default=1000, help="replicates of tables that take long")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    args.page.write_text(page(args.replicates, args.heavy), encoding="utf-8")


if __name__ == "__main__":
    main()
