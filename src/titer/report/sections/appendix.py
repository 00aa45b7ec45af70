"""What stands behind the verdicts: flags, settings, versions, commands, and every run with its completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from titer.report.cells import number
from titer.report.plots import Table
from titer.report.read import Result, Series, Sources, short
from titer.report.untrusted import excerpt, redacted
from titer.schema.types import Curve

Completions = Mapping[str, Sequence[Mapping[str, Any]]]
MAX_ROWS = 150


@dataclass(frozen=True, slots=True)
class Raised:
    """A flag as shown: who raised it, what it says and what to do about it."""

    model: str
    code: str
    message: str
    meaning: str
    what_to_do: str
    records: tuple[str, ...]


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


def flags(results: Sequence[Result]) -> list[Raised]:
    """Raised flags of all results, same flag with the same words once."""
    found: dict[tuple[str, str], Raised] = {}
    for result in results:
        for flag in result.get("flags") or ():
            code, message = str(flag.get("code", "")), str(flag.get("message", ""))
            meaning, advice = _advice(code)
            records = tuple(map(str, flag.get("records") or ()))
            one = Raised(short(str(result["model"])), code, message, meaning, advice, records)
            found.setdefault((code, message), one)
    return list(found.values())


def _advice(code: str) -> tuple[str, str]:
    from titer.conditions.flags import FLAGS

    page = next((f for f in FLAGS if f.code == code), None)
    return (page.meaning, page.what_to_do) if page else ("", "")


WHERE = (
    {"G1": "settings", "G2": "settings", "G3": "cost", "G4": "verdicts", "G5": "curves", "G6": "settings"}
    | dict.fromkeys(("G8", "G9", "G10"), "generalization")
    | {"G7": "settings", "G11": "stability", "G12": "trainability", "G13": "trainability", "G14": "cost"}
    | {"G15": "outcomes", "G16": "runs", "G17": "verdicts", "G18": "settings"}
)  # the section of the page that a guideline's evidence is in


def checklist(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The guidelines of each result that has them; what is unknown reads `not shown`."""
    return [
        {"name": short(str(r["model"])), "rows": [_guideline(g) for g in r["guidelines"]]}
        for r in results
        if r.get("guidelines")
    ]


def _guideline(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Number, words, status, and the section to look at where something is shown."""
    name, status = str(entry.get("id", "")), str(entry.get("status") or entry.get("answer") or "not shown")
    status = "not shown" if status == "unknown" else status
    return name, str(entry.get("text", "")), status, "" if status == "not shown" else WHERE.get(name, "")


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested JSON value as (dotted key, text) rows."""
    if isinstance(value, Mapping) and value:
        return [row for k, v in value.items() for row in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple)) for v in value):
        return [row for i, v in enumerate(value) for row in flat(v, f"{prefix}[{i}]")]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(map(_plain, value)) or "none")]
    return [(prefix, _plain(value))]


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "–" if value is None else "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(results: Sequence[Result], key: str) -> list[dict[str, Any]]:
    """`settings` or `environment` of each result as rows; results that agree are listed together."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for result in results:
        rows = tuple(flat(result.get(key) or {}))
        groups.setdefault(rows[:MAX_ROWS], []).append(short(str(result["model"])))
    return [{"names": names, "rows": [r for r in rows if r[0]]} for rows, names in groups.items()]


def commands(results: Sequence[Result]) -> list[str]:
    """How to reproduce: the commands that made the models and the results, else the one that the settings imply."""
    made = (((r.get("settings") or {}).get("immunization") or {}).get("commands") or () for r in results)
    found: dict[str, None] = dict.fromkeys(str(command) for commands in made for command in commands)
    for result in results:
        stored = result.get("commands") or (result.get("settings") or {}).get("commands") or ()
        for command in [stored] if isinstance(stored, str) else stored:
            found.setdefault(str(command))
        if not stored:
            found.setdefault(f"titer evaluate --model {result['model']} --reference {result.get('reference', '')}")
    return list(found)


def runs(sources: Sources, completions: Completions | None, show: bool, room: int) -> list[Run]:
    """Every run of the report; `room` is how many characters of completions all runs may show together."""
    known = {curve.record: (series, curve) for series, curve in sources.curves}
    listed = dict.fromkeys([*known, *(r for result in sources.results for r in mentioned(result))])
    share = room // max(len(listed), 1)
    return [_run(r, known.get(r), (completions or {}).get(r) or (), show, share) for r in listed]


def mentioned(value: Any) -> list[str]:
    """Every run id under a `records` key anywhere in a JSON value: what numbers on the page may link to."""
    if isinstance(value, Mapping):
        own = value.get("records")
        here = [str(r) for r in own] if isinstance(own, (list, tuple)) else []
        return here + [r for k, v in value.items() if k != "curves" for r in mentioned(v)]
    return [r for v in value for r in mentioned(v)] if isinstance(value, (list, tuple)) else []


def _run(
    record: str, known: tuple[Series, Curve] | None, stored: Sequence[Mapping[str, Any]], show: bool, share: int
) -> Run:
    shown = tuple(_completions(stored, show, share))
    if known is None:
        return Run(record, "other run", "none", "", (), Table((), ()), shown, len(stored))
    series, curve = known
    what = f"{curve.config} · {curve.data} data · seed {curve.seed}"
    points = _points(curve) if share else Table((), ())
    return Run(record, series.name, series.cls, what, _facts(curve), points, shown, len(stored))


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


def _completions(stored: Sequence[Mapping[str, Any]], show: bool, share: int) -> list[Shown]:
    """The last probe's completions first, while they fit in `share` characters."""
    out: list[Shown] = []
    for one in sorted(stored, key=lambda c: (-int(c.get("step", 0)), int(c.get("index", 0)))):
        made = _shown(one, show)
        share -= len(made.prompt) + len(made.text) + 200
        if share < 0:
            break
        out.append(made)
    return out


def _shown(one: Mapping[str, Any], show: bool) -> Shown:
    score = one.get("score") or {}
    conceal = excerpt if show else redacted
    where = f"step {one.get('step', '–')} · {one.get('probe', '')} {one.get('index', '')}"
    outcome = str(score.get("outcome") or "unscored")
    prompt, text = str(one.get("prompt", "")), str(one.get("text", ""))
    return Shown(where, outcome, number(score.get("value")), conceal(prompt), conceal(text))
