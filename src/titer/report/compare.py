"""Two results side by side: verdicts, paired differences where the curves allow it, and settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from titer.conditions.parts.bootstrap import difference_interval
from titer.conditions.parts.curves import by_config, common_steps, matrix, seeds_of
from titer.report.cells import estimate_cell, interval, number
from titer.report.read import CONDITIONS, Model, Result, estimate, flat, read, short
from titer.schema.types import Curve

SHOWN = ("verdict", "sentence", "estimate", "low", "high", "unit", "n", "seeds", "threshold")


def diff(a: Result, b: Result, *, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """What differs between two results, as JSON: conditions, curves (b - a), flags, settings, environment."""
    return {
        "models": [str(a["model"]), str(b["model"])],
        "conditions": {name: _conditions(_condition(a, name), _condition(b, name)) for name in CONDITIONS},
        "curves": _curves(a, b, seed, draws),
        "flags": {"only_a": sorted(_codes(a) - _codes(b)), "only_b": sorted(_codes(b) - _codes(a))},
        "settings": _differences(a.get("settings"), b.get("settings")),
        "environment": _differences(a.get("environment"), b.get("environment")),
    }


def _conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    same = a.get("verdict") == b.get("verdict")
    return {"a": {k: a.get(k) for k in SHOWN}, "b": {k: b.get(k) for k in SHOWN}, "same_verdict": same}


def _condition(result: Result, name: str) -> Mapping[str, Any]:
    found = result["conditions"].get(name)
    return found if isinstance(found, Mapping) else {"verdict": "not measured", "sentence": "Not measured."}


def _codes(result: Result) -> set[str]:
    return {flag.code for flag in Model(result).flags}


def _differences(a: Any, b: Any) -> list[dict[str, str | None]]:
    """Rows that differ; None where a side has no such row."""
    left, right = dict(flat(a or {})), dict(flat(b or {}))
    keys = dict.fromkeys(k for k in (*left, *right) if k and left.get(k) != right.get(k))
    return [{"key": k, "a": left.get(k), "b": right.get(k)} for k in keys]


def _curves(a: Result, b: Result, seed: int, draws: int) -> list[dict[str, Any]]:
    """Per attack both models were put through: the difference of harm at the last common probe."""
    ours, theirs = (by_config(c for _, c in read([r]).curves if c.role == "model") for r in (a, b))
    same_data = (a.get("settings") or {}).get("data") == (b.get("settings") or {}).get("data")
    rows = (_difference(ours[k], theirs[k], same_data, seed, draws) for k in sorted(ours.keys() & theirs.keys()))
    return [row for row in rows if row is not None]


def _difference(
    a: Sequence[Curve], b: Sequence[Curve], same_data: bool, seed: int, draws: int
) -> dict[str, Any] | None:
    probe = "task" if a[0].data.startswith("task") else "harm"
    steps = common_steps([*a, *b])
    x, y = (matrix(curves, probe, steps[-1]) if steps else None for curves in (a, b))
    if x is None or y is None:
        return None
    about = {"config": a[0].config, "data": a[0].data, "probe": probe, "step": steps[-1]}
    value = float(y.mean() - x.mean())
    if not same_data or x.shape[1] != y.shape[1]:
        return about | {"paired": False, "difference": value, "low": None, "high": None, "n": x.shape[1]}
    paired = seeds_of(a) == seeds_of(b) and x.shape == y.shape
    found = difference_interval(y, x, pair_seeds=paired, seed=seed, draws=draws)
    return about | {"paired": True, "difference": value, "low": found.low, "high": found.high, "n": x.shape[1]}


def diff_text(found: Mapping[str, Any]) -> str:
    """A comparison as plain text for a terminal."""
    a, b = (short(name) for name in found["models"])
    lines = [f"a: {a}", f"b: {b}", "", "conditions"]
    for name, pair in found["conditions"].items():
        mark = " " if pair["same_verdict"] else "*"
        lines.append(f"{mark} {name:<15} a {_verdict(pair['a']):<44} b {_verdict(pair['b'])}")
    lines += ["", "difference b - a at the last common probe"] + [_row(row) for row in found["curves"]]
    for side in ("only_a", "only_b"):
        lines += [f"flags in {side[-1]} only: {', '.join(found['flags'][side])}"] if found["flags"][side] else []
    for part in ("settings", "environment"):
        lines += ["", f"{part} that differ"] + [f"  {d['key']}: {d['a']} | {d['b']}" for d in found[part]]
        lines += [] if found[part] else ["  none"]
    return "\n".join(lines)


def _verdict(one: Mapping[str, Any]) -> str:
    if one["verdict"] == "not measured":
        return "not measured"
    cell = estimate_cell(estimate({**one, "value": one.get("estimate")}))
    return f"{one['verdict']}, {cell.value} {cell.interval}".strip()


def _row(row: Mapping[str, Any]) -> str:
    how = f"{interval(row['low'], row['high'])} paired, n {row['n']}" if row["paired"] else "not paired: data differ"
    sign = "+" if row["difference"] > 0 else ""
    where = f"{row['config']}, {row['data']}, step {row['step']}"
    return f"  {row['probe']:<5} {sign}{number(row['difference'])} {how}  {where}"
