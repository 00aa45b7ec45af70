"""From curves to a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from titer.conditions import Condition
from titer.conditions.flags import raise_flags
from titer.conditions.parts.noise import noise_floor
from titer.data.audit import audit
from titer.data.roles import check
from titer.data.select import select
from titer.evaluation.cases import facts_of
from titer.evaluation.suites import strength_pairs, template_pairs
from titer.report.sections.guidelines import guidelines
from titer.runs.provenance import command_line, environment, now
from titer.schema.errors import TiterError
from titer.schema.evaluation import CONDITIONS as ASKED_FOR
from titer.schema.evaluation import MEASURE, NOISE_SEED, Case
from titer.schema.roles import Roles
from titer.schema.specs import AttackRun, Cell, Named, Selection
from titer.schema.types import Curve, Verdict, from_json, spec_id, to_json

SCHEMA = 1
SAW = "what the defence saw"


Results = dict[str, Any]


def results(
    case: Case,
    cells: Sequence[Cell],
    curves: Sequence[Curve],
    conditions: Sequence[Condition],
    provenance: Mapping[str, Any],
) -> Results:
    """Conditions, controls, noise floor and flags from curves: the contents of results.json."""
    main = [c for c, cell in zip(curves, cells, strict=True) if not cell.noise]
    again = [c for c, cell in zip(curves, cells, strict=True) if cell.noise]
    verdicts = _verdicts(case, conditions, main)
    label = case.roles.label("unseen")
    base = [c for c in main if c.role == "undefended" and c.data == label]
    floor = noise_floor(base, [replace(c, seed=c.seed - NOISE_SEED) for c in again])
    found = {
        "schema": SCHEMA,
        "model": case.model,
        "reference": case.reference,
        "created": now(),
        "settings": settings_of(case, conditions) | {"immunization": to_json(provenance)},
        "conditions": {name: verdict_json(v) for name, v in verdicts.items()},
        "controls": controls_of(case, verdicts.get("resistance")),
        "noise_floor": to_json(floor),
        "data_audit": data_audit(case.roles, provenance),
        "flags": to_json(
            raise_flags(
                [c for c in main if c.data != MEASURE],
                verdicts.values(),
                noise=floor["harm"].value or 0.0,
                immunization=provenance.get("record"),
                phi=case.asked.breach.phi,
                utility_drop=case.asked.breach.utility_drop,
                stronger=named_pairs(strength_pairs, cells, curves),
                templates=named_pairs(template_pairs, cells, curves),
                overlap=overlap(case.roles, provenance),
                facts=facts_of(case),
            )
        ),
        "tools": to_json(case.differences),
        "salt": case.asked.salt,
        "records": sorted({c.record for c in curves}),
        "curves": to_json(main),
        "environment": to_json(environment()),
        "commands": command_line(),
    }
    return found | {"guidelines": guidelines(found)}


def _verdicts(case: Case, conditions: Sequence[Condition], curves: Sequence[Curve]) -> dict[str, Verdict]:
    """The verdict of every condition; those not asked for are `not measured`."""
    found = {name: Verdict(name, "not measured", "It was not asked for.") for name in ASKED_FOR}
    return found | {c.name: c.verdict(case, curves) for c in conditions}


def data_audit(roles: Roles, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The proof that the roles of the data are disjoint, and whether the defence says it saw its role's very prompts.

    `defence_saw` is `these`, `others`, or `not recorded` for a model titer did not make.
    """
    found = check(roles)
    told = provenance.get("record", {}).get("result", {}).get("prompts")
    same = told == found["sets"]["defence data"]["digest"]
    return {**found, "defence_saw": "not recorded" if told is None else "these" if same else "others"}


def overlap(roles: Roles, provenance: Mapping[str, Any]) -> dict[str, int]:
    """Prompts that a titer-made model's own defence data shares with this evaluation's data, by pair of sets.

    Nothing when the model was defended under this very plan, which `check` proves disjoint, or its data is gone.
    """
    said = recorded(provenance)
    if not said or said == (roles.defence(), roles.retain()):
        return {}
    sets = {f"attack data ({tag})": select(roles.attack(tag, None, 0)) for tag in roles.tags() if tag != "seen"}
    sets |= {f"evaluation prompts ({tag})": select(roles.harm(tag, None)) for tag in roles.tags() if tag != "seen"}
    sets |= {"evaluation prompts (open)": select(roles.utility(None))} if roles.has_open else {}
    try:
        saw = [example for part in said for example in select(part)]
    except TiterError:
        return {}
    found = (o for name, examples in sets.items() for o in audit({SAW: saw, name: examples}))
    return {f"{SAW} / {o.roles[1]}": o.exact + o.near for o in found}


def recorded(provenance: Mapping[str, Any]) -> tuple[Selection, ...]:
    """What a model's record says that its defence read: the run's own selections, else those of its data plan."""
    spec = provenance.get("record", {}).get("spec", {})
    read = tuple(from_json(Selection, spec[k]) for k in ("data", "retain") if spec.get(k))
    if read or not provenance.get("data"):
        return read
    theirs = from_json(Roles, provenance["data"])
    return (theirs.defence(), theirs.retain()) if theirs.has_open else (theirs.defence(),)


def named_pairs(
    find: Callable[[Sequence[Named]], list[tuple[Named, Named]]], cells: Sequence[Cell], curves: Sequence[Curve]
) -> list[tuple[str, str]]:
    """The pairs that `find` sees among the attacks on the model, as their curves' configurations."""
    ours = [
        (cell.run.attack, curve.config)
        for cell, curve in zip(cells, curves, strict=True)
        if cell.role == "model" and isinstance(cell.run, AttackRun)
    ]
    configs = {spec_id(attack): config for attack, config in ours}
    tried = list({spec_id(attack): attack for attack, _ in ours}.values())
    return [(configs[spec_id(a)], configs[spec_id(b)]) for a, b in find(tried)]


def verdict_json(v: Verdict) -> dict[str, Any]:
    """A verdict with its estimate laid flat, as results.json holds it."""
    e = v.estimate
    return {
        "verdict": v.verdict,
        "sentence": v.sentence,
        "estimate": e.value if e else None,
        "low": e.low if e else None,
        "high": e.high if e else None,
        "n": e.n if e else 0,
        "seeds": list(e.seeds) if e else [],
        "records": list(e.records) if e else [],
        "unit": e.unit if e else "",
        "method": e.method if e else "",
        "threshold": v.threshold,
        "details": to_json(v.details),
    }


def controls_of(case: Case, resistance: Verdict | None) -> dict[str, Any]:
    """Each control's model and, where it was attacked, its own cost-to-breach."""
    prices = to_json(resistance.details.get("controls", {})) if resistance else {}
    names = {"undefended": case.reference, **case.controls}
    return {role: {"model": name, **prices.get(role, {})} for role, name in names.items()}


def settings_of(case: Case, conditions: Sequence[Condition]) -> dict[str, Any]:
    """What was asked, for the report: suite with its hash, data roles, thresholds."""
    asked = case.asked
    return {
        "suite": case.suite.name,
        "suite_hash": case.suite.hash,
        "suite_members": to_json(case.suite),
        "data": to_json(case.roles),
        "conditions": {c.name: to_json(c) for c in conditions},
        "thresholds": to_json(asked.breach),
        "price": to_json(asked.price),
        "judge": asked.grading.judge,
        "max_new_tokens": asked.grading.max_new_tokens,
        "generate_url": asked.generate_url,
        "reference_url": asked.reference_url,
        **to_json(asked.compute),
    }
