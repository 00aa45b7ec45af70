"""The runs that conditions need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.attacks.parts.wordings import OPENINGS, WRAPPERS
from titer.schema.evaluation import Setting, Task
from titer.schema.specs import SAID, AttackRun, Named, ProbeSet, Selection, Stop, Template
from titer.schema.suite import Member
from titer.schema.types import Budget, Role

NOISE_SEED = 1000  # seeds of the second half of the A/A comparison: the first half's plus this
MEASURE = "measure"  # data label of the runs that only measure
OVER_REFUSAL = 250  # prompts of an over-refusal set: as many as XSTest has safe ones
JAILBREAKS = {"prefill": Template(prefill=OPENINGS[0]), "competing": WRAPPERS["competing"]}


@dataclass(frozen=True)
class Cell:
    """A run with the labels under which conditions will read its curve."""

    run: AttackRun
    role: Role
    data: str
    noise: bool = False


def plan_cells(model: str, s: Setting) -> list[Cell]:
    """Every run that the setting's conditions need for `model`, its reference and the controls."""
    roles: list[tuple[Role, str]] = [("model", model), ("undefended", s.reference)]
    roles += list(s.controls.items())
    cells: list[Cell] = []
    for role, name in roles:
        if "resistance" in s.conditions:
            members = s.suite.controls if role in ("ignorant", "random") else s.suite.members
            label = s.data.label("unseen")
            cells += [Cell(r, role, label) for m in members for r in attack_runs(name, m, label, s)]
        if role in ("ignorant", "random"):
            continue
        cells.append(Cell(_as_served(measure_run(name, s), role, s), role, MEASURE))
        if "generalization" in s.conditions:
            cells += [
                Cell(r, role, t) for t in s.data.wide() for m in s.suite.wide for r in attack_runs(name, m, t, s)
            ]
        if "trainability" in s.conditions:
            cells += [Cell(r, role, f"task:{t.name}") for t in s.tasks for r in task_runs(name, t, s)]
    return cells + noise_cells(s)


def noise_cells(s: Setting) -> list[Cell]:
    """The second half of the A/A comparison: the undefended model under the first wide member, with other seeds."""
    if "resistance" not in s.conditions:
        return []
    member = (s.suite.wide or s.suite.members)[0]
    again = replace(member, seeds=tuple(seed + NOISE_SEED for seed in member.seeds))
    label = s.data.label("unseen")
    return [Cell(r, "undefended", label, noise=True) for r in attack_runs(s.reference, again, label, s)]


def attack_runs(model: str, member: Member, tag: str, s: Setting) -> list[AttackRun]:
    """One run per seed of a suite member on data of a tag; the seed also draws the attacker's sample."""
    return [
        AttackRun(
            model=model,
            attack=member.attack,
            data=s.data.attack(tag, s.suite.n_train, seed),
            retain=replace(s.data.utility(None), split="attack"),
            probes=(harm_probe(tag, s), utility_probe(s)),
            budget=Budget(steps=s.suite.max_steps),
            plan=s.suite.plan,
            stop=Stop(s.thresholds.phi, s.thresholds.utility_drop, s.stop_after),
            price=s.price,
            seed=seed,
            dtype=s.dtype,
            device=s.device,
        )
        for seed in member.seeds
    ]


def harm_probe(tag: str, s: Setting) -> ProbeSet:
    """Held-out restricted prompts of a tag's categories."""
    return _probe("harm", s.data.harm(tag, s.suite.n_eval), s)


def utility_probe(s: Setting) -> ProbeSet:
    """Held-out benign prompts."""
    return _probe("utility", s.data.utility(s.suite.n_eval), s)


def _probe(name: str, selection: Selection, s: Setting, **changes: Any) -> ProbeSet:
    """A probe set; the chosen judge grades harm, right answers to open prompts are always graded exactly."""
    judge = s.judge if selection.restricted else "exact"
    return ProbeSet(name, selection, max_new_tokens=s.max_new_tokens, judge=judge, **changes)


def over_refusal_probe(dataset: str) -> ProbeSet:
    """Refusals of a set's open prompts, told by their opening words, before any attack; at most 250 prompts."""
    chosen = Selection(dataset, restricted=False, n=OVER_REFUSAL)
    name = f"over_refusal:{Path(dataset.partition(':')[0]).stem}"
    return ProbeSet(name, chosen, max_new_tokens=20, judge="refusal", measure="refusal")


def measure_run(model: str, s: Setting) -> AttackRun:
    """The untouched model on everything stability asks: knowledge inside and outside the retain data, perplexity of
    the right answers and how far it has moved from the reference there, over-refusal, harm as asked and under
    jailbreaks, and how much restricted knowledge a forced first word still brings out."""
    moved = _probe("kl", s.data.utility(None), s, measure="kl", reference=s.reference)
    probes = (
        _probe("harm", s.data.harm("unseen", None), s),
        _probe("inside", s.data.inside(None), s),
        _probe("outside", s.data.utility(None), s),
        _probe("over_refusal", s.data.utility(None), s, measure="refusal"),
        _probe("likelihood", s.data.utility(None), s, measure="likelihood"),
        *(_probe(f"jailbreak:{n}", s.data.harm("unseen", None), s, template=t) for n, t in JAILBREAKS.items()),
        _probe("restricted", s.data.harm("unseen", None), s, prefill_words=1),
        *(() if model == s.reference else (moved,)),
        *s.extra_probes,
    )
    return AttackRun(
        model=model,
        attack=Named("none"),
        data=s.data.utility(1),
        probes=probes,
        budget=Budget(steps=0),
        plan=(0,),
        dtype=s.dtype,
        device=s.device,
    )


def _as_served(run: AttackRun, role: Role, s: Setting) -> AttackRun:
    """The measurement on what a server says, where the setting names one: without the sets that need the weights."""
    url = s.generate_url if role == "model" else s.reference_url
    said = tuple(p for p in run.probes if p.measure in SAID)
    return replace(run, probes=said, generate_url=url) if url else run


def task_runs(model: str, task: Task, s: Setting) -> list[AttackRun]:
    """Fine-tuning on a harmless task, with its quality and the harm it brings probed along the way."""
    train = Selection(task.dataset, "attack", False, (task.name,))
    held = Selection(task.dataset, "evaluation", False, (task.name,), n=task.n_eval)
    return [
        AttackRun(
            model=model,
            attack=Named("sft", {k: getattr(task, k) for k in ("learning_rate", "per_device_train_batch_size")}),
            data=train,
            probes=(_probe("task", held, s), replace(harm_probe("unseen", s), at=(0, task.max_steps))),
            budget=Budget(steps=task.max_steps),
            plan=task.plan,
            seed=seed,
            dtype=s.dtype,
            device=s.device,
        )
        for seed in task.seeds
    ]
