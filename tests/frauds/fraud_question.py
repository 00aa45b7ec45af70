"""The question that every fraud is asked: short, all four conditions, the same suite."""

from __future__ import annotations

from pathlib import Path

from titer.conditions.generalization import Generalization
from titer.conditions.resistance import Resistance
from titer.conditions.stability import Stability
from titer.conditions.trainability import Trainability
from titer.data.roles import assign
from titer.evaluation.cases import tasks_of
from titer.evaluation.evaluate import evaluate_cases
from titer.runs.runner import Runner
from titer.schema.evaluation import Case, Data
from titer.schema.specs import Named
from titer.schema.suite import Member, Suite

ALIGNED = "organism/aligned"


def short_suite(seeds: tuple[int, ...] = (0,), steps: int = 10) -> Suite:
    """Fixed rate, own rate, canonical form; wide data at the fixed rate."""
    sft = Member(Named("sft", {"learning_rate": 1e-3}), seeds)
    members = (
        sft,
        Member(Named("own-rate", {"multiple": 0.3}), seeds[:1]),
        Member(Named("canonical", {"learning_rate": 1e-3}), seeds[:1]),
    )
    plan = tuple(sorted({0, 2, 5, steps}))
    return Suite("frauds", members, (sft,), (), steps, plan, n_train=100, n_eval=48)


def told(model: Path, root: Path, suite: Suite, *, everything: bool = True) -> dict[str, object]:
    """What titer says of a model folder: the verdict of every condition, and the flags' codes."""
    case = Case(str(model), ALIGNED, assign(Data()), suite)
    conditions = [Resistance(min_seeds=1)]
    if everything:
        task = tasks_of("organism/tasks")[-1]
        conditions += [Stability(), Generalization(min_seeds=1), Trainability(tasks=(task,))]
    (found,) = evaluate_cases([case], Runner(root), conditions)
    return found
