"""A judge against people: scores on a labelled set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from titer.campaigns.rejudge.agreement import cohen_kappa
from titer.data.rows import read_rows
from titer.schema.errors import TiterError
from titer.schema.types import OUTCOMES, Score

if TYPE_CHECKING:
    from titer.judges.base import Judge


@dataclass(frozen=True, slots=True)
class Labelled:
    """A completion and whether a person found that it complies harmfully."""

    prompt: str
    completion: str
    harmful: bool
    target: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a judge does on labelled completions. Shares are over those it scored; None where there is no such row.

    `recall` is the share of harmful ones it calls `comply`, `false_alarms` that of harmless ones; `auroc` ranks by
    value (ties count half), `brier` is the mean squared distance of the value from the label.
    """

    judge: str
    n: int
    unscored: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    false_alarms: float | None
    kappa: float | None
    auroc: float | None
    brier: float | None


def read_labelled(path: str) -> list[Labelled]:
    """A labelled set: rows with `prompt`, `completion`, `label`, and optionally `target`.

    `label` is true/false, 1/0, `harmful`/`harmless`, or an outcome (of which `comply` is the harmful one). Raises
    `TiterError` naming row and column.
    """
    rows = [_labelled(row, path, i) for i, row in enumerate(read_rows(path), start=1)]
    if not rows:
        raise TiterError(f"labelled set {path}: it is empty: rows need prompt, completion and label")
    return rows


def _labelled(row: Mapping[str, Any], path: str, number: int) -> Labelled:
    texts = {column: row.get(column, "" if column == "target" else None) for column in _TEXTS}
    for column, value in texts.items():
        if not isinstance(value, str):
            raise TiterError(f"labelled set {path}: row {number}: column {column}: expected text, got {value!r:.40}")
    label = row.get("label")
    known: dict[Any, bool] = {True: True, False: False, "harmful": True, "harmless": False, "1": True, "0": False}
    known |= {"true": True, "false": False, "True": True, "False": False}
    known |= {o: o == "comply" for o in OUTCOMES}
    if not isinstance(label, (str, int)) or label not in known:
        raise TiterError(
            f"labelled set {path}: row {number}: column label: expected true, false, harmful, harmless or "
            f"{', '.join(OUTCOMES)}, got {label!r:.40}"
        )
    return Labelled(texts["prompt"], texts["completion"], known[label], texts["target"])


_TEXTS = ("prompt", "completion", "target")


def calibrate(judge: Judge, rows: Sequence[Labelled]) -> Calibration:
    """Score a labelled set with a judge and compare."""
    scores = judge.score([r.prompt for r in rows], [r.completion for r in rows], [r.target for r in rows])
    return compare(judge.name, scores, [r.harmful for r in rows])


def compare(judge: str, scores: Sequence[Score], labels: Sequence[bool]) -> Calibration:
    """A judge's scores against labels, row by row."""
    known = [(s, y) for s, y in zip(scores, labels, strict=True) if s.outcome is not None and s.value is not None]
    said = [(s.outcome == "comply", y) for s, y in known]
    values = [(s.value or 0.0, y) for s, y in known]
    return Calibration(
        judge=judge,
        n=len(scores),
        unscored=len(scores) - len(known),
        accuracy=_share([a == y for a, y in said]),
        precision=_share([y for a, y in said if a]),
        recall=_share([a for a, y in said if y]),
        false_alarms=_share([a for a, y in said if not y]),
        kappa=cohen_kappa(said),
        auroc=auroc(values),
        brier=sum((v - y) ** 2 for v, y in values) / len(values) if values else None,
    )


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def auroc(values: Sequence[tuple[float, bool]]) -> float | None:
    """Probability that a harmful row outranks a harmless one, ties half (Mann-Whitney); None without both kinds."""
    from scipy.stats import rankdata

    positive = sum(y for _, y in values)
    negative = len(values) - positive
    if not positive or not negative:
        return None
    ranks = rankdata([v for v, _ in values])
    total = sum(float(rank) for rank, (_, y) in zip(ranks, values, strict=True) if y)
    return (total - positive * (positive + 1) / 2) / (positive * negative)
