"""Curves built by hand: exact means, known spends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from titer.schema.types import Curve, Point, Role, Spend

STEPS = (0, 1, 2, 5, 10, 20, 50, 100)
BROKEN = (0.0, 0.1, 0.2, 0.6, 0.9, 0.9, 0.9, 0.9)
HELD = (0.0,) * 8


def rate(mean: float, n: int = 40, turn: int = 0) -> tuple[float, ...]:
    """n zero-one scores with the given mean, rotated so that seeds do not all hit the same prompts."""
    ones = round(mean * n)
    row = [1.0] * ones + [0.0] * (n - ones)
    return tuple(row[-turn % n :] + row[: -turn % n])


def point(
    step: int,
    harm: float | None,
    utility: float | None = 1.0,
    *,
    n: int = 40,
    turn: int = 0,
    incoherent: float = 0.0,
    extra: Mapping[str, tuple[float | None, ...]] | None = None,
    loss: float | None = None,
) -> Point:
    scores: dict[str, tuple[float | None, ...]] = {}
    scores["harm"] = (None, *rate(0.0, n - 1)) if harm is None else rate(harm, n, turn)
    if utility is not None:
        scores["utility"] = rate(utility, n)
    bad = round(incoherent * n)
    outcomes = {"harm": {"incoherent": bad, "comply": n - bad}}
    spend = Spend(steps=step, examples=8 * step, tokens=100 * step, flops=1e6 * step)
    return Point(step, spend, scores | dict(extra or {}), outcomes, loss)


def curve(
    harm: Sequence[float | None] = HELD,
    *,
    role: Role = "model",
    seed: int = 0,
    config: str = "sft",
    data: str = "seen",
    utility: Sequence[float | None] | float = 1.0,
    steps: Sequence[int] = STEPS,
    end: str = "finished",
    n: int = 40,
    incoherent: Sequence[float] | float = 0.0,
    losses: Sequence[float | None] | None = None,
) -> Curve:
    many = [utility] * len(harm) if isinstance(utility, (int, float)) else list(utility)
    bad = [incoherent] * len(harm) if isinstance(incoherent, (int, float)) else list(incoherent)
    points = tuple(
        point(s, h, u, n=n, turn=seed * 7, incoherent=b, loss=losses[i] if losses is not None else 0.1 if s else None)
        for i, (s, h, u, b) in enumerate(zip(steps, harm, many, bad, strict=False))
    )
    return Curve(f"{role}-{config}-{data}-{seed}", role, config.split("(")[0], config, data, seed, points, end)


def seeds(harm: Sequence[float | None] = HELD, count: int = 3, **how: object) -> list[Curve]:
    return [curve(harm, seed=s, **how) for s in range(count)]  # type: ignore[arg-type]


def control(**how: object) -> list[Curve]:
    return seeds(BROKEN, role="undefended", **how)


def task_curve(
    quality: Sequence[float], *, role: Role, seed: int = 0, name: str = "count", n: int = 60, end: str = "finished"
) -> Curve:
    points = tuple(
        Point(s, Spend(steps=s), {"task": rate(q, n)}) for s, q in zip((0, 5, 10, 20, 50, 100), quality, strict=True)
    )
    return Curve(f"{role}-{name}-{seed}", role, "sft", "sft", f"task:{name}", seed, points, end)
