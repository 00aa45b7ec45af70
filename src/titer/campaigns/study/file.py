"""A study file: models x defences x attacks x data x seeds in YAML, checked, and laid out as the cells to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from titer.attacks import make_attack
from titer.data.roles import assign, check
from titer.defences import configure
from titer.evaluation.suites import find_suite
from titer.models.load import bare, check_available, resolve
from titer.runs.checks import check_run
from titer.runs.inputs import identify
from titer.runs.layout import canonical
from titer.schema.breach import Breach
from titer.schema.errors import TiterError, unknown
from titer.schema.evaluation import Case, Data, Evaluation, Grading
from titer.schema.files import read_yaml
from titer.schema.registry import flat_keys, nested, validate
from titer.schema.roles import TAGS, Roles
from titer.schema.specs import AttackRun, Cell, Compute, Named, TrainArgs, plan_to
from titer.schema.suite import Suite
from titer.schema.types import changes, describe

MADE = "run:"  # a model named by the run that makes it
UNDEFENDED = "none"
TRAIN = {f.name for f in dataclasses.fields(TrainArgs)}
LABELS = ("model", "defence", "defence_seed", "attack", "data", "seed")
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "models": ["organism/aligned"],
        "defences": ["none", {"name": "repnoise", "train": {"learning_rate": 3e-4, "max_steps": 10}}],
        "attacks": [{"name": "sft", "options": {"learning_rate": 1e-3}}],
        "seeds": [0],
        "max_steps": 5,
        "n_eval": 12,
    },
    "quick": {
        "models": ["organism/aligned"],
        "defences": [
            "none",
            {"name": "adversarial-loss", "train": {"learning_rate": 3e-4, "max_steps": 100}},
            {"name": "repnoise", "train": {"learning_rate": 3e-4, "max_steps": 150}},
        ],
        "attacks": [{"suite": "quick"}],
    },
}


@dataclass(frozen=True)
class Entry:
    """One line of `defences` or `attacks`: fixed `options`, a `grid` of option -> values, training of a defence.

    `suite` names a suite instead, for all of its members. `label` is what tables and exclusions call it.
    """

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    base_model: str = ""
    label: str = ""
    suite: str = ""


@dataclass(frozen=True)
class Axes:
    """What is crossed with what. `seeds` are the attacks', `defence_seeds` the immunizations'."""

    models: tuple[str, ...]
    attacks: tuple[Entry, ...] = ()
    defences: tuple[Entry, ...] = (Entry(UNDEFENDED),)
    data: tuple[str, ...] = ("unseen",)
    seeds: tuple[int, ...] = (0, 1, 2)
    defence_seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Shared:
    """What all cells of a study share."""

    name: str = "study"
    max_steps: int = 50
    plan: tuple[int, ...] = ()
    n_train: int | None = 100
    n_eval: int | None = 48
    stop_after: int = 1
    about: Data = Data()
    grading: Grading = Grading()
    breach: Breach = Breach()
    compute: Compute = Compute()


@dataclass(frozen=True)
class Study:
    """A checked study file."""

    shared: Shared
    axes: Axes
    include: tuple[Axes, ...] = ()
    exclude: tuple[Mapping[str, tuple[Any, ...]], ...] = ()

    @cached_property
    def data(self) -> Roles:
        """The roles of the data, the same for all cells."""
        return assign(self.shared.about)

    def case(self, model: str) -> Case:
        """What attack runs on a model are built from."""
        s = self.shared
        plan = s.plan or plan_to(s.max_steps)
        suite = Suite("study", (), (), (), s.max_steps, plan, s.n_train, s.n_eval)
        asked = Evaluation(grading=s.grading, breach=s.breach, compute=self.compute, stop_after=s.stop_after)
        return Case(model, "", self.data, suite, asked)

    @cached_property
    def compute(self) -> Compute:
        """Where runs compute, as specs hold it."""
        return canonical(self.shared.compute)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell, each run once, those that make models first of their group; exclusions do not reach includes."""
        found = [c for c in _crossed(self, self.axes) if not any(_matches(c, e) for e in self.exclude)]
        used = {c.needs for c in found} if self.axes.attacks else {c.run_id for c in found}
        kept = [c.cell for c in found if isinstance(c.cell.run, AttackRun) or c.run_id in used]
        kept += [c.cell for axes in self.include for c in _crossed(self, axes)]
        return tuple({c.key: c for c in kept}.values())


def read_study(path: str | Path) -> Study:
    """The study in a YAML file. `TiterError`, one line, for an unknown key (with the nearest), name or value."""
    where = f"study {path}"
    return parse_study(read_yaml(path, where, "models: [organism/aligned]"), where)


def parse_study(raw: Mapping[str, Any], where: str = "study") -> Study:
    """A study from the keys of its file; names, options, models and data are all checked."""
    axes, shared = {f.name for f in dataclasses.fields(Axes)}, flat_keys(Shared)
    _check_keys(raw, {*axes, *shared, "preset", "include", "exclude"}, where)
    raw = {**_preset(raw.get("preset"), where), **raw}
    top = {k: v for k, v in raw.items() if k in axes}
    if not top.get("models"):
        raise TiterError(f"{where}: models: at least one is needed, such as `models: [organism/aligned]`")
    include = [
        _axes(top | {k: v for k, v in more.items()}, axes, f"{where}: include {i}")
        for i, more in enumerate(_list(raw, "include", where), start=1)
    ]
    study = Study(
        shared=validate(Shared, nested(Shared, {k: v for k, v in raw.items() if k in shared}), where),
        axes=_axes(top, axes, where),
        include=tuple(include),
        exclude=tuple(_exclusion(e, f"{where}: exclude") for e in _list(raw, "exclude", where)),
    )
    check(study.data)
    for tag in {tag for a in (study.axes, *study.include) for tag in a.data}:
        study.data.categories(tag)
    for cell in study.cells:
        check_run(cell.run)
    if not study.cells:
        raise TiterError(f"{where}: no cells: its exclusions leave nothing, or an axis is empty")
    return study


def _preset(name: Any, where: str) -> Mapping[str, Any]:
    if name is not None and name not in PRESETS:
        raise TiterError(f"{where}: unknown preset {name!r}: known: {', '.join(PRESETS)}")
    return PRESETS[name] if name else {}


def _axes(raw: Mapping[str, Any], known: set[str], where: str) -> Axes:
    _check_keys(raw, known, where)
    entries = {
        k: [_entry(e, f"{where}: {k}") for e in _list(raw, k, where)] for k in ("defences", "attacks") if k in raw
    }
    axes: Axes = validate(Axes, {**raw, **entries}, where)
    for model in axes.models:
        check_available(resolve(bare(model)))
    for entry in axes.defences:
        list(_defence_variants(entry, f"{where}: defences"))
    for entry in axes.attacks:
        list(_attack_variants(entry, f"{where}: attacks"))
    for tag in axes.data:
        if tag not in TAGS:
            raise TiterError(f"{where}: data: unknown tag {tag!r}: known: {', '.join(TAGS)}")
    return axes


def _entry(raw: Any, where: str) -> Mapping[str, Any]:
    if isinstance(raw, str):
        return {"name": raw}
    if not isinstance(raw, dict):
        raise TiterError(f"{where}: expected a name or `name: ...` with options, got {raw!r}")
    _check_keys(raw, {f.name for f in dataclasses.fields(Entry)}, where)
    if bool(raw.get("name")) == bool(raw.get("suite")):
        raise TiterError(f"{where}: {dict(raw)}: give a name, or for attacks a suite")
    return raw


def _exclusion(raw: Any, where: str) -> Mapping[str, tuple[Any, ...]]:
    if not isinstance(raw, dict) or not raw:
        raise TiterError(f"{where}: expected labels and values, such as `{{defence: repnoise, data: withheld}}`")
    _check_keys(raw, set(LABELS), where)
    return {k: tuple(v) if isinstance(v, list) else (v,) for k, v in raw.items()}


def _list(raw: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    value = raw.get(key) or []
    if not isinstance(value, list):
        raise TiterError(f"{where}: {key}: expected a list, got {value!r}")
    return value


def _check_keys(raw: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in raw:
        if key not in known:
            raise TiterError(f"{where}: {unknown('key', str(key), known)}")


@dataclass(frozen=True)
class _Variant:
    """A configured defence or attack: its short name, its label and how to build it."""

    short: str
    label: str
    named: Named
    train: TrainArgs = TrainArgs()
    base: str = ""


@dataclass(frozen=True)
class _Planned:
    cell: Cell
    names: Mapping[str, tuple[Any, ...]]
    run_id: str = ""

    @property
    def needs(self) -> str:
        return self.cell.needs


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _label(entry: Entry, point: Mapping[str, Any], described: str) -> str:
    if not entry.label:
        return described
    return f"{entry.label}({', '.join(f'{k}={v}' for k, v in point.items())})" if point else entry.label


def _defence_variants(entry: Entry, where: str) -> Iterator[_Variant]:
    if entry.suite:
        raise TiterError(f"{where}: suite {entry.suite!r}: suites are of attacks: give a defence's name")
    if entry.name == UNDEFENDED:
        yield _Variant(UNDEFENDED, entry.label or UNDEFENDED, Named(UNDEFENDED))
        return
    for point in _points(entry.grid):
        options = {**entry.options, **{k: v for k, v in point.items() if k not in TRAIN}}
        chosen = {**entry.train, **{k: v for k, v in point.items() if k in TRAIN}}
        _check_keys(chosen, TRAIN, f"{where}: {entry.name}: train")
        train: TrainArgs = validate(TrainArgs, chosen, f"{where}: {entry.name}: train")
        built = describe(configure(entry.name, options))
        trained = ", ".join(f"{k}={v}" for k, v in changes(train).items() if k in point)
        label = _label(entry, point, f"{built} [{trained}]" if trained else built)
        yield _Variant(entry.name, label, Named(entry.name, options), train, entry.base_model)


def _attack_variants(entry: Entry, where: str) -> Iterator[_Variant]:
    if entry.train or entry.base_model:
        raise TiterError(f"{where}: {entry.name}: an attack's training goes into its options")
    if entry.suite:
        for member in find_suite(entry.suite).members:
            made = make_attack(member.attack.name, member.attack.options)
            yield _Variant(member.attack.name, describe(made), member.attack)
        return
    for point in _points(entry.grid):
        options = {**entry.options, **point}
        label = _label(entry, point, describe(make_attack(entry.name, options)))
        yield _Variant(entry.name, label, Named(entry.name, options))


def _crossed(study: Study, axes: Axes) -> Iterator[_Planned]:
    for model in axes.models:
        for entry in axes.defences:
            for defence in _defence_variants(entry, "defences"):
                for seed in axes.defence_seeds if defence.short != UNDEFENDED else (0,):
                    yield from _of_model(study, axes, model, defence, seed)


def _of_model(study: Study, axes: Axes, model: str, defence: _Variant, seed: int) -> Iterator[_Planned]:
    """The cells of one released model: making it, unless it is given, and attacking it."""
    labels: dict[str, str | int] = {"model": model, "defence": defence.label, "defence_seed": seed}
    names: dict[str, tuple[Any, ...]] = {"model": (model,), "defence": (defence.label, defence.short)}
    names["defence_seed"] = (seed,)
    needs = ""
    if defence.short != UNDEFENDED:
        run = study.data.immunize(
            model, defence.named, defence.train, base=defence.base, seed=seed, compute=study.compute
        )
        needs = identify(run)
        yield _Planned(Cell(run, labels), names, needs)
    target = MADE + needs if needs else model
    for entry in axes.attacks:
        for attack in _attack_variants(entry, "attacks"):
            for tag in axes.data:
                for seed in axes.seeds:
                    one = study.case(target).attack_run(attack.named, tag, seed)
                    own: dict[str, str | int] = {"attack": attack.label, "data": tag, "seed": seed}
                    found = {"attack": (attack.label, attack.short), "data": (tag,), "seed": (seed,)}
                    yield _Planned(Cell(one, labels | own, needs), names | found)


def _matches(planned: _Planned, exclusion: Mapping[str, tuple[Any, ...]]) -> bool:
    return all(set(values) & set(planned.names.get(key, ())) for key, values in exclusion.items())
