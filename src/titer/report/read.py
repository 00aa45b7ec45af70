"""Stored results read back: which models, which curves (each once), and how each is named and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from titer.schema.errors import TiterError
from titer.schema.types import Curve, from_json

Result = Mapping[str, Any]
CONDITIONS = ("resistance", "stability", "generalization", "trainability")
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One model or control as it appears in every chart: its name, its role and its CSS class."""

    name: str
    role: str
    cls: str


@dataclass(frozen=True, slots=True)
class Sources:
    """All results of a report; `curves` pairs each distinct curve with the series it belongs to."""

    results: tuple[Result, ...]
    series: tuple[Series, ...]
    curves: tuple[tuple[Series, Curve], ...]

    def attacks(self) -> list[tuple[Series, Curve]]:
        """Curves of attacks (not of harmless training), on the data the verdict of resistance rests on."""
        tags = ("seen", "unseen", "none", "")
        return [pair for pair in self.curves if pair[1].data.partition(":")[0] in tags and _has(pair[1], "harm")]


def _has(curve: Curve, probe: str) -> bool:
    return any(probe in point.scores for point in curve.points)


def read(results: Sequence[Result]) -> Sources:
    """Results (at least one) as `Sources`; a result that cannot be read raises `TiterError` saying which and why."""
    if not results:
        raise TiterError("report: no results given: pass at least one results.json")
    series: dict[tuple[str, str], Series] = {}
    curves: dict[tuple[str, str], tuple[Series, Curve]] = {}  # one run may be unseen to one model and cross to another
    for index, result in enumerate(results):
        _check(index, result)
        for curve in _curves(index, result):
            one = series.setdefault(_identity(result, curve.role), _series(result, curve.role, index))
            curves.setdefault((curve.record, curve.data), (one, curve))
        series.setdefault(_identity(result, "model"), _series(result, "model", index))
    order = {"undefended": 0, "model": 1, "ignorant": 2, "random": 3}
    ordered = sorted(series.values(), key=lambda s: order[s.role])
    return Sources(tuple(results), tuple(ordered), tuple(curves.values()))


def _check(index: int, result: Result) -> None:
    missing = [key for key in ("model", "conditions") if key not in result]
    if missing:
        raise TiterError(f"report: result {index + 1} has no {missing[0]!r}: is it a results.json of titer?")
    if result.get("schema", 1) != 1:
        raise TiterError(f"report: result {index + 1} has schema {result['schema']}: this version of titer reads 1")


def _curves(index: int, result: Result) -> Iterable[Curve]:
    for position, curve in enumerate(result.get("curves", ())):
        try:
            yield from_json(Curve, curve)
        except ValueError as error:
            raise TiterError(f"report: result {index + 1}, curve {position + 1}: {error}") from None


def _identity(result: Result, role: str) -> tuple[str, str]:
    return role, str(result["model"]) if role == "model" else str(result.get("reference", ""))


def _series(result: Result, role: str, index: int) -> Series:
    if role == "model":
        return Series(short(str(result["model"])), role, f"m{index % COLOURS}")
    return Series(role, role, role)


def short(name: str) -> str:
    """The last part of a path (absolute, or deeper than two); hub ids and embedded names stay as they are."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[-1] if parts and (name.startswith(("/", ".")) or len(parts) > 2) else name


def by_series(curves: Iterable[tuple[Series, Curve]]) -> dict[Series, list[Curve]]:
    """Curves grouped by model or control."""
    groups: dict[Series, list[Curve]] = {}
    for one, curve in curves:
        groups.setdefault(one, []).append(curve)
    return groups
