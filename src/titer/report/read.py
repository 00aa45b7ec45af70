"""Stored results read back: the one place that knows how results.json is laid out, and which curves there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from titer.schema.errors import TiterError
from titer.schema.types import Curve, Estimate, Flag, Verdict, VerdictWord, from_json

Json = Mapping[str, Any]
Result = Json
Completions = Mapping[str, Sequence[Json]]
CONDITIONS = ("resistance", "stability", "generalization", "trainability")
CONTROLS = ("undefended", "ignorant", "random")
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One model or control as it appears in every chart: its name, its role and its CSS class."""

    name: str
    role: str
    cls: str


@dataclass(frozen=True, slots=True)
class Config:
    """What one attack configuration did: runs, how many of them breached, and in how many steps.

    `seen` is the step at which each run (by record) was first seen breached, None where it was not.
    """

    name: str
    data: str
    runs: int
    breached: int
    worst: Estimate | None
    median: Estimate | None
    seen: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Priced:
    """What it took to breach one model or control; `worst` is by unit, `times` the price over the undefended one's."""

    breached: Estimate | None
    worst: Mapping[str, Estimate | None]
    median: Estimate | None
    times: Estimate | None
    configs: tuple[Config, ...]


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """One set of prompts of stability: the reference's and the model's score, and the gain held to a margin."""

    name: str
    reference: Estimate | None
    model: Estimate | None
    gain: Estimate
    margin: float | None
    p_not_worse: float | None
    word: str


@dataclass(frozen=True, slots=True)
class Crossing:
    """A cell of defence data against attack data."""

    defence_data: str
    attack_data: str
    verdict: str
    steps: Estimate | None
    harm: Estimate | None
    undefended_harm: Estimate | None
    ratio: Estimate | None

    @property
    def kind(self) -> str:
        """What the attack's data is to the defence: unseen, withheld or cross."""
        return self.attack_data.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Audit:
    """Duplicates between the roles of the data, prompts by role, and whether the defence saw what is said."""

    exact: int
    near: int
    sizes: Mapping[str, int]
    saw: str
    digest: str


@dataclass(frozen=True, slots=True)
class Member:
    """An attack of the suite with its seeds."""

    attack: str
    options: Json
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """A stored curve in short: whose it is, on which data, and how many probes it has."""

    role: str
    data: str
    points: int


@dataclass(frozen=True, slots=True)
class Found:
    """What `titer search` found of a model; without `attack` nothing breached it."""

    unit: str
    budget: float
    attacks: int
    trials: int
    stopped: str
    spent: Mapping[str, float]
    oracle: float | None = None
    cheapest: float | None = None
    price: float | None = None
    price_tokens: float | None = None
    attack: str = ""
    options: Mapping[str, Any] | None = None
    replicates: tuple[float | None, ...] = ()
    records: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One result, read. A part that is missing reads as empty or as not measured, never as a number."""

    raw: Result
    index: int = 0

    @property
    def full_name(self) -> str:
        """The model as it was named to `titer evaluate`."""
        return str(self.raw["model"])

    @property
    def name(self) -> str:
        """The model's name as shown."""
        return short(self.full_name)

    @property
    def cls(self) -> str:
        """Its CSS class in every chart."""
        return f"m{self.index % COLOURS}"

    @property
    def reference(self) -> str:
        """The model it is compared with."""
        return str(self.raw.get("reference") or "")

    @property
    def created(self) -> str:
        """The day it was measured, or nothing."""
        return str(self.raw.get("created") or "")[:10]

    @property
    def records(self) -> tuple[str, ...]:
        """The runs the result rests on."""
        return tuple(map(str, self.raw.get("records") or ()))

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Raised flags."""
        found = self.raw.get("flags") or ()
        return tuple(Flag(str(f.get("code", "")), str(f.get("message", "")), _records(f)) for f in found)

    # -------------------------------------------------------------------------------------------- what was asked for

    def setting(self, *path: str) -> Any:
        """An entry of the settings, or None."""
        return _dig(self.raw, "settings", *path)

    def rows_of(self, part: str) -> list[tuple[str, str]]:
        """`settings` or `environment` as (dotted key, text) rows."""
        return flat(self.raw.get(part) or {})

    def data(self, role: str) -> tuple[str, ...]:
        """The categories in a role: defended, withheld or cross."""
        return tuple(map(str, self.setting("data", role) or ()))

    @property
    def members(self) -> tuple[Member, ...]:
        """The attacks of the suite."""
        found = self.setting("suite_members", "members") or ()
        return tuple(
            Member(str(m["attack"]["name"]), m["attack"].get("options") or {}, tuple(m["seeds"])) for m in found
        )

    @property
    def made_by(self) -> tuple[str, ...]:
        """The commands that made the model."""
        return tuple(map(str, self.setting("immunization", "commands") or ()))

    @property
    def measured_by(self) -> tuple[str, ...]:
        """The commands that measured it."""
        found = self.raw.get("commands") or self.setting("commands") or ()
        return (found,) if isinstance(found, str) else tuple(map(str, found))

    # ------------------------------------------------------------------------------------------------- what was found

    def verdict(self, condition: str) -> Verdict:
        """A condition's verdict; one that is not there was not measured."""
        found = _dig(self.raw, "conditions", condition)
        if not isinstance(found, Mapping):
            return Verdict(condition, "not measured", "Not measured.")
        return Verdict(
            condition,
            cast(VerdictWord, str(found.get("verdict", "not measured"))),
            str(found.get("sentence") or ""),
            estimate({**found, "value": found.get("estimate")}),
            found.get("threshold"),
            found.get("details") or {},
        )

    def detail(self, condition: str, *path: str) -> Any:
        """An entry of a condition's details, or None."""
        return _dig(self.raw, "conditions", condition, "details", *path)

    @property
    def budget(self) -> float | None:
        """The attacker's budget in steps."""
        return _float(self.detail("resistance", "budget_steps"))

    @property
    def phi(self) -> float | None:
        """Mean harm that is a breach."""
        return _float(self.detail("resistance", "phi"))

    def lines(self) -> dict[str, str]:
        """The words of in-domain and cross-domain generalization, where they were told apart."""
        found = self.detail("generalization", "lines") or {}
        return {str(name): str(line.get("verdict")) for name, line in found.items()}

    def prices(self) -> dict[str, Priced]:
        """By role (`model` and the controls): what a breach took; empty when resistance was not measured."""
        found = self.detail("resistance") or {}
        controls = {str(k): v for k, v in (found.get("controls") or {}).items() if v}
        return {role: _priced(one) for role, one in {"model": found, **controls}.items()} if found else {}

    def ran(self) -> list[Ran]:
        """The stored curves in short."""
        found = self.raw.get("curves") or ()
        return [Ran(str(c.get("role")), str(c.get("data")), len(c.get("points") or ())) for c in found]

    def control_breached(self) -> bool:
        """Whether any attack breached the undefended model."""
        return bool(_dig(self.raw, "controls", "undefended", "breached", "value"))

    @property
    def defence_saw(self) -> str:
        """Whose prompts the defence's own record names: these, others, or not recorded."""
        return str(_dig(self.raw, "data_audit", "defence_saw") or "")

    def probe_sets(self) -> list[ProbeSet]:
        """The sets of prompts of stability that have a gain."""
        found = [_probe_set(str(k), s) for k, s in (self.detail("stability", "sets") or {}).items()]
        return [one for one in found if one is not None]

    def distance(self) -> Estimate | None:
        """KL from the reference in nats per token."""
        return estimate(self.detail("stability", "kl"))

    def selectivity(self) -> dict[str, Estimate]:
        """Loss on restricted knowledge minus loss on open knowledge, by what was compared."""
        return _estimates(self.detail("stability", "selectivity"))

    def harm_around_tasks(self) -> dict[str, tuple[Estimate | None, ...]]:
        """By task: harm of the model before and after it, then the reference's; tasks that were probed for it."""
        found = self.detail("trainability", "tasks") or {}
        pairs = [(who, when) for who in ("model", "reference") for when in ("before", "after")]
        probed = {str(name): task["harm"] for name, task in found.items() if _dig(task, "harm")}
        return {name: tuple(estimate(_dig(harm, *pair)) for pair in pairs) for name, harm in probed.items()}

    def crossings(self) -> list[Crossing]:
        """Defence data against attack data."""
        return [_crossing(row) for row in self.detail("generalization", "matrix") or ()]

    def by_kind(self) -> dict[str, tuple[str, Estimate | None]]:
        """The verdict of generalization for each kind of attack data, and what it rests on."""
        found = self.detail("generalization", "tags") or {}
        return {str(k): (str(v["verdict"]), estimate(v.get("estimate"))) for k, v in found.items() if v}

    def audit(self) -> Audit | None:
        """The audit of the data, where one was made."""
        found = self.raw.get("data_audit")
        sets = _dig(found, "sets")
        if not found or not sets:
            return None
        sizes = {str(name): s["prompts"] for name, s in sets.items()}
        digest = str(_dig(sets, "defence data", "digest") or "")
        return Audit(found["exact"], found["near"], sizes, str(found.get("defence_saw") or ""), digest)

    def noise(self) -> dict[str, Estimate]:
        """The noise floor by probe, where it is known."""
        found = _estimates(self.raw.get("noise_floor"))
        return {name: e for name, e in found.items() if e.value is not None}

    def guidelines(self) -> list[tuple[str, str, str]]:
        """The stored checklist: number, words, status."""
        return [
            (str(g.get("id", "")), str(g.get("text", "")), str(g.get("status") or g.get("answer") or "unknown"))
            for g in self.raw.get("guidelines") or ()
        ]

    def judged(self) -> Json | None:
        """What `titer judge` wrote beside the result."""
        return self.raw.get("judges")

    def search(self) -> Found | None:
        """What `titer search` found of this model."""
        found = self.raw.get("search")
        return _found(found) if found else None

    def about(self, condition: str) -> str:
        """Which probe set or task a verdict's estimate is about: the one with the same numbers in the details."""
        where = {"stability": ("sets", "gain"), "trainability": ("tasks", "steps_difference")}
        group, key = where.get(condition, ("", ""))
        mine = _ends(self.verdict(condition).estimate)
        for label, found in (self.detail(condition, group) or {}).items() if group else ():
            if _ends(estimate(_dig(found, key))) == mine:
                return str(label)
        return ""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a section may show. `curves` pairs each distinct curve with the series it belongs to.

    `completions` are stored ones by run; they take at most `room` characters, and are redacted unless `show`.
    """

    models: tuple[Model, ...]
    series: tuple[Series, ...]
    curves: tuple[tuple[Series, Curve], ...]
    completions: Completions | None = None
    show: bool = False
    room: int = 0

    def attacks(self) -> list[tuple[Series, Curve]]:
        """Curves of attacks (not of harmless training), on the data the verdict of resistance rests on."""
        tags = ("seen", "unseen", "none", "")
        return [pair for pair in self.curves if pair[1].data.partition(":")[0] in tags and _has(pair[1], "harm")]

    @property
    def budget(self) -> float | None:
        """The attacker's budget in steps."""
        return self.models[0].budget

    @property
    def phi(self) -> float | None:
        """Mean harm that is a breach."""
        return next((m.phi for m in self.models if m.phi is not None), None)


def read(results: Sequence[Result]) -> Reading:
    """Results (at least one) as a `Reading`; one that cannot be read raises `TiterError` saying which and why."""
    if not results:
        raise TiterError("report: no results given: pass at least one results.json")
    series: dict[tuple[str, str], Series] = {}
    curves: dict[tuple[str, str], tuple[Series, Curve]] = {}  # one run may be unseen to one model and cross to another
    for index, result in enumerate(results):
        _check(index, result)
        model = Model(result, index)
        for curve in _curves(model):
            one = series.setdefault(_identity(model, curve.role), _series(model, curve.role))
            curves.setdefault((curve.record, curve.data), (one, curve))
        series.setdefault(_identity(model, "model"), _series(model, "model"))
    order = {"undefended": 0, "model": 1, "ignorant": 2, "random": 3}
    ordered = sorted(series.values(), key=lambda s: order[s.role])
    models = tuple(Model(result, index) for index, result in enumerate(results))
    return Reading(models, tuple(ordered), tuple(curves.values()))


def _check(index: int, result: Result) -> None:
    missing = [key for key in ("model", "conditions") if key not in result]
    if missing:
        raise TiterError(f"report: result {index + 1} has no {missing[0]!r}: is it a results.json of titer?")
    if result.get("schema", 1) != 1:
        raise TiterError(f"report: result {index + 1} has schema {result['schema']}: this version of titer reads 1")


def _curves(model: Model) -> Iterable[Curve]:
    for position, curve in enumerate(model.raw.get("curves") or ()):
        try:
            yield from_json(Curve, curve)
        except ValueError as error:
            raise TiterError(f"report: result {model.index + 1}, curve {position + 1}: {error}") from None


def _identity(model: Model, role: str) -> tuple[str, str]:
    return role, model.full_name if role == "model" else model.reference


def _series(model: Model, role: str) -> Series:
    return Series(model.name, role, model.cls) if role == "model" else Series(role, role, role)


def _has(curve: Curve, probe: str) -> bool:
    return any(probe in point.scores for point in curve.points)


def by_series(curves: Iterable[tuple[Series, Curve]]) -> dict[Series, list[Curve]]:
    """Curves grouped by model or control."""
    groups: dict[Series, list[Curve]] = {}
    for one, curve in curves:
        groups.setdefault(one, []).append(curve)
    return groups


def short(name: str) -> str:
    """The last part of a path (absolute, or deeper than two); hub ids and embedded names stay as they are."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[-1] if parts and (name.startswith(("/", ".")) or len(parts) > 2) else name


# ---------------------------------------------------------------------------------------------------- parts of results


def estimate(found: Any) -> Estimate | None:
    """An estimate from its JSON; None for nothing. An `n` of 0 is not known."""
    if not isinstance(found, Mapping) or not found:
        return None
    value, low, high = (_float(found.get(key)) for key in ("value", "low", "high"))
    unit, method = (str(found.get(key) or "") for key in ("unit", "method"))
    return Estimate(
        value, low, high, int(found.get("n") or 0), tuple(found.get("seeds") or ()), _records(found), unit, method
    )


def _estimates(found: Any) -> dict[str, Estimate]:
    read = {str(k): estimate(v) for k, v in (found or {}).items()}
    return {k: e for k, e in read.items() if e is not None}


def _ends(found: Estimate | None) -> tuple[float | None, ...]:
    return (found.value, found.low, found.high) if found else ()


def _float(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _records(found: Json) -> tuple[str, ...]:
    return tuple(map(str, found.get("records") or ()))


def _dig(value: Any, *path: str) -> Any:
    """A nested entry of JSON mappings, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _priced(found: Json) -> Priced:
    return Priced(
        estimate(found.get("breached")),
        {str(unit): estimate(e) for unit, e in (found.get("worst") or {}).items()},
        estimate(_dig(found, "median", "steps")),
        estimate(_dig(found, "ratio", "steps")),
        tuple(_config(c) for c in found.get("configs") or ()),
    )


def _config(found: Json) -> Config:
    worst, median = (estimate(_dig(found, key, "steps")) for key in ("worst", "median"))
    seen = {str(run["record"]): (run.get("steps") or (0, None))[1] for run in found.get("by_run") or ()}
    return Config(str(found["config"]), str(found["data"]), found["runs"], found["breached"], worst, median, seen)


def _probe_set(name: str, found: Json) -> ProbeSet | None:
    gain = estimate(found.get("gain"))
    if gain is None or gain.value is None:
        return None
    reference, model = (estimate(found.get(key)) for key in ("reference", "model"))
    margin, p = (_float(found.get(key)) for key in ("margin", "p_not_worse"))
    return ProbeSet(name, reference, model, gain, margin, p, str(found.get("word") or "–"))


def _crossing(row: Json) -> Crossing:
    found = [estimate(row.get(key)) for key in ("steps", "harm", "undefended_harm", "ratio")]
    return Crossing(str(row["defence_data"]), str(row["attack_data"]), str(row["verdict"]), *found)


def _found(s: Json) -> Found:
    always = (str(s["unit"]), s["budget"], len(s.get("attacks", ())), len(s["trials"]), str(s["stopped"]), s["spend"])
    best = s.get("best")
    if not best:
        return Found(*always)
    price = (s["oracle"], s["cheapest"], s["search"], s["search_spend"]["tokens"])
    attack = (str(best["attack"]["name"]), best["attack"]["options"])
    return Found(*always, *price, *attack, tuple(best.get("replicates") or ()), _records(best))


# -------------------------------------------------------------------------------------------------------- any JSON


def mentioned(value: Any) -> list[str]:
    """Every run id under a `records` key anywhere in a JSON value: what numbers on the page may link to."""
    if isinstance(value, Mapping):
        own = value.get("records")
        here = [str(r) for r in own] if isinstance(own, (list, tuple)) else []
        return here + [r for k, v in value.items() if k != "curves" for r in mentioned(v)]
    return [r for v in value for r in mentioned(v)] if isinstance(value, (list, tuple)) else []


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
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
