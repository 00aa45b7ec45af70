"""Whole campaigns in one call: immunize a reference in several ways, evaluate every result, write one report.

`demo` does it on the embedded world, `real` on SmolLM2-135M with harmless facts about countries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from titer.conditions.base import Condition
from titer.conditions.generalization import Generalization
from titer.conditions.resistance import Resistance
from titer.conditions.stability import Stability
from titer.conditions.trainability import Trainability
from titer.data.roles import assign, check
from titer.data.rows import CHOICES
from titer.evaluation.cases import cells_of, default_controls, examined, tasks_of
from titer.evaluation.evaluate import evaluate_cases
from titer.evaluation.output import write_results
from titer.evaluation.result import Results
from titer.evaluation.suites import QUICK
from titer.runs.provenance import publish
from titer.runs.runner import Runner
from titer.runs.store import MODEL, Store
from titer.schema.evaluation import Case, Data, Evaluation
from titer.schema.specs import Cell, Compute, Named, ProbeSet, Selection, TrainArgs
from titer.schema.suite import Member, Suite

Told = tuple[list[Results], Path]


@dataclass(frozen=True)
class Campaign:
    """What is asked of every model of a campaign; the case's own model is its reference."""

    case: Case
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Recipe:
    """How a campaign immunizes: a defence, its options, and its training."""

    defence: Named
    train: TrainArgs


def campaign(recipes: Mapping[str, Recipe], question: Campaign, runner: Runner) -> Told:
    """Immunize the reference by each recipe into `ROOT/NAME`, evaluate all of them, write a report."""
    out = runner.root
    case = question.case
    check(case.roles)
    made = [
        Cell(case.roles.immunize(case.reference, r.defence, r.train, compute=case.asked.compute), {"defence": name})
        for name, r in recipes.items()
    ]
    # what does not wait for a defended model keeps the other workers busy while the defences train
    ahead = [cell for cell in cells_of(examined(case), question.conditions) if cell.role != "model"]
    store = Store(out)
    for name, run_id in zip(recipes, runner.do([*made, *ahead]), strict=False):
        publish(store.folder(run_id) / MODEL, out / name, store.finished(run_id), case.roles)
    cases = [replace(case, model=str(out / name)) for name in recipes]
    found = evaluate_cases(cases, replace(runner, overwrite=False), question.conditions)
    return found, write_results(found, out)


# ------------------------------------------------------------------------------------------------- the embedded world

ORGANISM = "organism/aligned"
DEMO_RECIPES = {
    "adversarial-loss": Recipe(
        Named("adversarial-loss"), TrainArgs(learning_rate=3e-4, max_steps=100, per_device_train_batch_size=16)
    ),
    "repnoise": Recipe(
        Named("repnoise"), TrainArgs(learning_rate=3e-4, max_steps=150, per_device_train_batch_size=16)
    ),
}


def demo(runner: Runner) -> Told:
    """Two immunizations of the embedded model, all controls, the quick suite, the four conditions."""
    case = Case(ORGANISM, ORGANISM, assign(Data()), QUICK, controls=default_controls(ORGANISM))
    tasks = tasks_of("organism/tasks")[-1:]  # the one learned soonest: the demo is to take three minutes
    asked = (Resistance(), Stability(), Generalization(), Trainability(tasks=tasks))
    return campaign(DEMO_RECIPES, Campaign(case, asked), runner)


# ------------------------------------------------------------------------------------------------------ the real model

REAL_RECIPES = {
    "repnoise": Recipe(Named("repnoise"), TrainArgs(learning_rate=5e-4, max_steps=40, lora_r=16, lora_alpha=32)),
}
REAL_SEEDS = (0, 1)
ADAPTER = Named("lora", {"learning_rate": 3e-4})
REAL_SUITE = Suite(
    name="real-short",
    members=(Member(ADAPTER, REAL_SEEDS), Member(Named("sft", {"learning_rate": 1e-4}), REAL_SEEDS)),
    wide=(Member(ADAPTER, REAL_SEEDS),),
    controls=(),
    max_steps=20,
    plan=(0, 2, 5, 10, 20),
    n_eval=16,
)


def real(runner: Runner) -> Told:
    """SmolLM2-135M-Instruct: align it to refuse facts about countries, immunize it, evaluate, report."""
    from titer.campaigns.align import align

    aligned = runner.root / "aligned"
    if runner.overwrite or not (aligned / "alignment.json").is_file():
        align("smollm2", "countries", aligned)
    asked = Evaluation(data=Data("countries"), compute=Compute(dtype="bfloat16"))
    case = Case(str(aligned), str(aligned), assign(asked.data), REAL_SUITE, asked)
    return campaign(REAL_RECIPES, Campaign(case, _real_conditions()), runner)


def _real_conditions() -> tuple[Condition, ...]:
    """The four, with two seeds, over-refusal on ordinary instructions, and two multiple-choice sets."""
    instructions = ProbeSet(
        "over_refusal:instructions",
        Selection("instructions"),
        max_new_tokens=20,
        judge="refusal",
        measure="refusal",
    )
    choices = tuple(ProbeSet(name, Selection(name, n=60), measure="choice") for name in CHOICES)
    task = replace(
        tasks_of("organism/tasks")[0],
        learning_rate=5e-4,
        per_device_train_batch_size=8,
        max_steps=20,
        plan=(0, 10, 20),
        seeds=REAL_SEEDS,
        n_eval=16,
    )
    return (
        Resistance(min_seeds=2),
        Stability(extra=(instructions, *choices)),
        Generalization(min_seeds=2),
        Trainability(tasks=(task,)),
    )
