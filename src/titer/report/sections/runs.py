"""Every run of the report with its completions; the only section that shrinks where the page has no room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.report.cells import number
from titer.report.charts import Table
from titer.report.read import Json, Reading, Series, mentioned
from titer.report.untrusted import excerpt, redacted
from titer.schema.types import Curve

TITLE = "Runs"


@dataclass(frozen=True, slots=True)
class Shown:
    """A completion as shown: redacted, or an excerpt."""

    where: str
    outcome: str
    score: str
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run as listed: what it was, how it went, and some of its completions."""

    record: str
    name: str
    cls: str
    what: str
    facts: tuple[tuple[str, str], ...]
    points: Table
    shown: tuple[Shown, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Runs:
    """All runs; whether completions were given to the report, and whether it shows them."""

    runs: list[Run]
    stored: bool
    shown: bool


def view(reading: Reading) -> Runs | None:
    """Every run; all of them together show as many completions as the reading has room for."""
    known = {curve.record: (series, curve) for series, curve in reading.curves}
    listed = dict.fromkeys([*known, *(r for model in reading.models for r in mentioned(model.raw))])
    share = reading.room // max(len(listed), 1)
    stored = reading.completions or {}
    runs = [_run(r, known.get(r), stored.get(r) or (), reading.show, share) for r in listed]
    return Runs(runs, reading.completions is not None, reading.show) if runs else None


def _run(record: str, known: tuple[Series, Curve] | None, stored: Sequence[Json], show: bool, share: int) -> Run:
    shown, total = _completions(stored, show, share), len(stored)
    if known is None:
        return Run(record, "other run", "none", "", (), Table((), ()), shown, total)
    series, curve = known
    what = f"{curve.config} · {curve.data} data · seed {curve.seed}"
    points = _points(curve) if share else Table((), ())
    return Run(record, series.name, series.cls, what, _facts(curve), points, shown, total)


def _facts(curve: Curve) -> tuple[tuple[str, str], ...]:
    if not curve.points:
        return (("ended", curve.end),)
    spend = curve.points[-1].spend
    return (
        ("ended", f"{curve.end} at step {curve.points[-1].step}"),
        ("tokens", number(spend.tokens, True)),
        ("FLOPs", number(spend.flops, True)),
        ("seconds", number(spend.device_seconds)),
    )


def _points(curve: Curve) -> Table:
    probes = list(dict.fromkeys(name for p in curve.points for name in p.scores))
    rows = [(p.step, number(p.loss), *(number(p.mean(n)) for n in probes)) for p in curve.points]
    return Table(("step", "loss", *probes), tuple(rows))


def _completions(stored: Sequence[Json], show: bool, share: int) -> tuple[Shown, ...]:
    """The last probe's completions first, while they fit in `share` characters."""
    out: list[Shown] = []
    for one in sorted(stored, key=lambda c: (-int(c.get("step", 0)), int(c.get("index", 0)))):
        made = _shown(one, show)
        share -= len(made.prompt) + len(made.text) + 200
        if share < 0:
            break
        out.append(made)
    return tuple(out)


def _shown(one: Json, show: bool) -> Shown:
    score = one.get("score") or {}
    conceal = excerpt if show else redacted
    where = f"step {one.get('step', '–')} · {one.get('probe', '')} {one.get('index', '')}"
    outcome = str(score.get("outcome") or "unscored")
    prompt, text = str(one.get("prompt", "")), str(one.get("text", ""))
    return Shown(where, outcome, number(score.get("value")), conceal(prompt), conceal(text))
