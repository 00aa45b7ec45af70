"""A zoo file: which defences, the settings each may choose from, and what all of them are held to alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from titer.attacks import make_attack
from titer.conditions.base import Condition
from titer.conditions.generalization import Generalization
from titer.conditions.resistance import Resistance
from titer.conditions.stability import Stability
from titer.conditions.trainability import Trainability
from titer.data.roles import assign, check
from titer.defences import configure
from titer.evaluation.cases import tasks_of
from titer.models.load import check_available, resolve
from titer.schema.breach import Breach
from titer.schema.errors import TiterError, unknown
from titer.schema.evaluation import Case, Data, Evaluation, Grading
from titer.schema.evaluation import Task as Learned
from titer.schema.files import read_yaml
from titer.schema.registry import flat_keys, nested, validate
from titer.schema.roles import Roles
from titer.schema.specs import Compute, ImmunizeRun, Named, TrainArgs
from titer.schema.suite import Member, Suite

TRAIN = {f.name for f in dataclasses.fields(TrainArgs)} - {"max_steps"}
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Attacks:
    """Attacks of `max_steps` each, probed at `plan`; `wide` ones train on withheld and cross data."""

    members: tuple[Member, ...]
    wide: tuple[Member, ...] = ()
    max_steps: int = 50
    plan: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    n_train: int | None = 100
    n_eval: int | None = 48


@dataclass(frozen=True)
class Task:
    """The harmless tasks of trainability: the first `count` of a data set, and how each is learned."""

    dataset: str = "organism/tasks"
    count: int = 3
    learning_rate: float = Learned.learning_rate
    per_device_train_batch_size: int = Learned.per_device_train_batch_size
    max_steps: int = Learned.max_steps
    plan: tuple[int, ...] = Learned.plan
    seeds: tuple[int, ...] = Learned.seeds


@dataclass(frozen=True)
class Candidate:
    """One setting of a defence: its options and its training, but for the steps, which the budget decides."""

    defence: Named
    train: TrainArgs

    @property
    def changes(self) -> dict[str, Any]:
        """The options and the learning rate, as tables show them."""
        return {**self.defence.options, "learning_rate": self.train.learning_rate}


@dataclass(frozen=True)
class Zoo:
    """A checked zoo file. `tokens` is what tuning one defence may cost, shared evenly by its settings.

    In `defences` a setting is a flat mapping of the defence's options and of `TrainArgs` fields over `train`.
    `controls` are shown in the table like defences, without tuning. `base_model` is the reference before alignment,
    `note` what the page is to say of what is not in this file.
    """

    defences: Mapping[str, tuple[Options, ...]]
    validation: Attacks
    test: Attacks
    tokens: int
    name: str = "zoo"
    note: str = ""
    reference: str = "organism/aligned"
    base_model: str = "organism/base"
    controls: Mapping[str, str] = field(default_factory=lambda: {"ignorant": "organism/ignorant"})
    dataset: str = "organism"
    train: Options = field(default_factory=dict)
    task: Task | None = Task()
    breach: Breach = Breach()
    grading: Grading = Grading()
    compute: Compute = Compute()
    seed: int = 0

    @cached_property
    def data(self) -> Roles:
        """The roles of the data, the same for all."""
        return assign(Data(self.dataset))

    def candidates(self, name: str) -> tuple[Candidate, ...]:
        """The settings of a defence."""
        return tuple(self._candidate(name, given) for given in self.defences[name])

    def _candidate(self, name: str, given: Options) -> Candidate:
        where = f"zoo: {name}"
        options = {k: v for k, v in given.items() if k not in TRAIN}
        if "max_steps" in options:
            raise TiterError(f"{where}: max_steps: the budget in tokens decides it: leave it out")
        configure(name, options)
        training = {**self.train, **{k: v for k, v in given.items() if k in TRAIN}}
        return Candidate(Named(name, options), validate(TrainArgs, training, where))

    def immunization(self, candidate: Candidate, steps: int) -> ImmunizeRun:
        """The run that makes a defended model."""
        needs_base = "base" in configure(candidate.defence.name, candidate.defence.options).needs
        train = replace(candidate.train, max_steps=steps)
        base = self.base_model if needs_base else ""
        return self.data.immunize(
            self.reference, candidate.defence, train, base=base, seed=self.seed, compute=self.compute
        )

    def case(self, model: str, attacks: Attacks) -> Case:
        """The question that a set of attacks makes of a model."""
        suite = Suite(self.name, attacks.members, attacks.wide, (), attacks.max_steps, attacks.plan)
        asked = Evaluation(grading=self.grading, breach=self.breach, compute=self.compute, stop_after=0)
        return Case(
            model,
            self.reference,
            self.data,
            replace(suite, n_train=attacks.n_train, n_eval=attacks.n_eval),
            asked,
        )

    def conditions(self) -> tuple[Condition, ...]:
        """The four, trainability on the tasks of the file."""
        return (Resistance(), Stability(), Generalization(), Trainability(tasks=self._tasks()))

    def _tasks(self) -> tuple[Learned, ...]:
        if self.task is None:
            return ()
        how = {f.name: getattr(self.task, f.name) for f in dataclasses.fields(self.task)}
        count, dataset = how.pop("count"), how.pop("dataset")
        return tuple(replace(t, **how) for t in tasks_of(dataset)[:count])


def read_zoo(path: str | Path) -> Zoo:
    """The zoo in a YAML file. `TiterError`, one line, for whatever would stop it hours later."""
    where = f"zoo {path}"
    return parse_zoo(read_yaml(path, where, "defences: {safety-sft: [{}]}"), where)


def parse_zoo(raw: Options, where: str = "zoo") -> Zoo:
    """A zoo from the keys of its file; names, options, models and data are all checked."""
    known = flat_keys(Zoo)
    for key in raw:
        if key not in known:
            raise unknown(f"key of {where}", key, known)
    for key in ("defences", "validation", "test", "tokens"):
        if not raw.get(key):
            raise TiterError(f"{where}: {key}: missing: see configs/zoo.yaml")
    zoo: Zoo = validate(Zoo, nested(Zoo, raw), where)
    for name in zoo.defences:
        if not zoo.candidates(name):
            raise TiterError(f"{where}: {name}: no setting: give at least {{}}")
    tried = [m.attack for m in zoo.validation.members]
    for named in (*tried, *(m.attack for m in (*zoo.test.members, *zoo.test.wide))):
        make_attack(named.name, named.options)
    if shared := [m.attack for m in zoo.test.members if m.attack in tried]:
        raise TiterError(f"{where}: validation: {shared[0].name} is among the test attacks with the same options")
    for model in (zoo.reference, *zoo.controls.values()):
        check_available(resolve(model))
    check(zoo.data)
    return zoo
