"""The zoo: every defence tuned with the same budget, then attacked alike; what comes out is plain JSON.

Phases: a pilot of a few steps says how many tokens a step costs; every setting is trained for its share of the budget
and attacked on validation; the best setting of each defence is evaluated with the test attacks. Every run is
content-addressed, so a zoo that was killed goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.campaigns.study.file import MADE
from titer.campaigns.zoo.file import Candidate, Zoo
from titer.conditions.parts.breach import Bar, bar_against, crossing
from titer.evaluation.evaluate import evaluate_cases
from titer.report.zoo import UNIT, plot, render, spots
from titer.runs.inputs import identify
from titer.runs.provenance import environment, now, publish
from titer.runs.queue import Board, run_study
from titer.runs.runner import Report, Runner, quiet
from titer.runs.store import MODEL, Store
from titer.schema.files import read_json, write_json, write_text
from titer.schema.specs import AttackRun, Cell, TrainArgs
from titer.schema.types import Curve, Role, RunRecord, spec_id, to_json

PILOT = 5  # steps of a pilot: the least that holds both of TAR's phases in their proportion
RESULTS = "zoo.json"
UNDEFENDED = "undefended"
Say = Callable[[str], None]
Json = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One setting, tried: the runs, what they cost, and how it did on validation (`error` when it could not train).

    `utility` is its accuracy on open prompts before the attack, `kept` that over the bound, at most 1.
    """

    candidate: Candidate
    steps: int
    immunization: str = ""
    attacks: tuple[str, ...] = ()
    error: str = ""
    tokens: int = 0
    flops: float = 0.0
    utility: float | None = None
    kept: float = 0.0
    breach: float | None = None
    harm: float | None = None

    @property
    def rank(self) -> tuple[bool, float, float, float]:
        """What makes a setting better: it trained, keeps utility, costs the attacker more steps, yields less harm."""
        cost = math.inf if self.breach is None else self.breach
        return not self.error, self.kept, cost, -(1.0 if self.harm is None else self.harm)


def run_zoo(
    zoo: Zoo, output_dir: str | Path, *, workers: int = 1, report: Report = quiet, say: Say = lambda line: None
) -> Json:
    """Tune, choose, test; writes `output_dir/zoo.json` and returns its content."""
    out = Path(output_dir)
    say(f"pilots: tokens a step of {sum(map(len, zoo.defences.values()))} settings")
    pace = pilots(zoo, out, workers)
    say("tuning: every setting trained for its share of the budget, then attacked on validation")
    trials = tune(zoo, pace, out, workers)
    chosen = {name: max(tried, key=lambda t: t.rank) for name, tried in trials.items()}
    names = [name for name, best in chosen.items() if not best.error]
    models = {name: _published(zoo, name, chosen[name], out) for name in names}
    models |= dict(zoo.controls) | {UNDEFENDED: zoo.reference}
    say(f"test: {len(models)} models")
    cases = [zoo.case(model, zoo.test) for model in models.values()]
    found = evaluate_cases(cases, Runner(out, workers, report=report), zoo.conditions())
    results = dict(zip(models, found, strict=True))
    for name, one in results.items():
        write_json(out / "results" / f"{name}.json", one)
    whole = summarize(zoo, trials, chosen, results, out)
    write_json(out / RESULTS, whole)
    return dict(read_json(out / RESULTS))


# ------------------------------------------------------------------------------------------------------------ tuning


def pilots(zoo: Zoo, out: Path, workers: int) -> dict[str, float]:
    """Tokens a step costs, by the content of a candidate's options; they do not depend on its learning rate."""
    plain = {_cost_key(c): replace(c, train=_tame(c.train)) for name in zoo.defences for c in zoo.candidates(name)}
    cells = [Cell(zoo.immunization(c, PILOT), {"defence": c.defence.name}) for c in plain.values()]
    board = run_study(cells, out, workers=workers)
    records = [board.record(i) if board.state(i) == "done" else None for i in range(len(cells))]
    return {k: r.spend.tokens / PILOT if r else 0.0 for k, r in zip(plain, records, strict=True)}


def _cost_key(c: Candidate) -> str:
    return spec_id((c.defence, c.train.per_device_train_batch_size, c.train.gradient_accumulation_steps))


def _tame(train: TrainArgs) -> TrainArgs:
    """The training at a rate at which no pilot diverges."""
    return replace(train, learning_rate=1e-5)


def steps_for(tokens: float, pace: float) -> int:
    """Steps that a budget allows; a defence without training steps takes none."""
    return max(1, int(tokens // pace)) if pace > 0 else 0


def tune(zoo: Zoo, pace: Mapping[str, float], out: Path, workers: int) -> dict[str, list[Trial]]:
    """Train every setting and attack it on validation; the trials of each defence, in the file's order."""
    plans = {
        name: [(c, steps_for(zoo.tokens / len(zoo.defences[name]), pace[_cost_key(c)])) for c in zoo.candidates(name)]
        for name in zoo.defences
    }
    cells = [_attack_cell(run, {"defence": UNDEFENDED}, "") for run in validation_runs(zoo, zoo.reference)]
    for name, planned in plans.items():
        for i, (candidate, steps) in enumerate(planned):
            cells += _trial_cells(zoo, candidate, steps, {"defence": name, "setting": i})
    board = run_study(cells, out, workers=workers)
    terms = zoo.breach
    bar = bar_against(_curves(board, UNDEFENDED, None), phi=terms.phi, utility_drop=terms.utility_drop)
    return {n: [_trial(board, bar, n, i, c, s) for i, (c, s) in enumerate(p)] for n, p in plans.items()}


def validation_runs(zoo: Zoo, model: str) -> list[AttackRun]:
    """The validation attacks: trained on the defence's own examples and probed on the attack split's prompts.

    Neither is used by the test, whose attacks train on the attack split and are probed on the evaluation split.
    """
    case = zoo.case(model, zoo.validation)
    members = zoo.validation.members
    return [_on_validation(case.attack_run(m.attack, "seen", seed)) for m in members for seed in m.seeds]


def _on_validation(run: AttackRun) -> AttackRun:
    probes = tuple(replace(p, selection=replace(p.selection, split="attack")) for p in run.probes)
    kept = None if run.retain is None else replace(run.retain, split="defence")
    return replace(run, probes=probes, retain=kept)


def _trial_cells(zoo: Zoo, candidate: Candidate, steps: int, labels: Mapping[str, str | int]) -> list[Cell]:
    made = zoo.immunization(candidate, steps)
    needs = identify(made)
    return [
        Cell(made, labels),
        *(_attack_cell(run, labels, needs) for run in validation_runs(zoo, MADE + needs)),
    ]


def _attack_cell(run: AttackRun, labels: Mapping[str, str | int], needs: str) -> Cell:
    return Cell(run, {**labels, "attack": run.attack.name, "seed": run.seed}, needs)


def _of(board: Board, name: str, setting: int | None) -> list[int]:
    """The cells of a setting: its immunization first, then its attacks."""
    return [i for i, c in enumerate(board.cells) if (c.labels["defence"], c.labels.get("setting")) == (name, setting)]


def _curves(board: Board, name: str, setting: int | None) -> list[Curve]:
    role: Role = "undefended" if name == UNDEFENDED else "model"
    ids = [board.id(i) for i in _of(board, name, setting) if isinstance(board.cells[i].run, AttackRun)]
    return [board.store.curve(i, role, "seen") for i in ids if i and board.store.record(i)]


def _trial(board: Board, bar: Bar, name: str, setting: int, candidate: Candidate, steps: int) -> Trial:
    cells = _of(board, name, setting)
    bare = Trial(candidate, steps)
    for i in cells:
        if board.state(i) != "done":
            return replace(bare, error=str((board.failure(i) or {}).get("error", "not done")))
    record = board.store.finished(board.id(cells[0]) or "")
    curves = _curves(board, name, setting)
    found = [crossing(c, bar) for c in curves]
    utility = min(c.points[0].mean("utility") or 0.0 for c in curves)
    least = min(f.seen() for f in found)
    harms = [h for c in curves for p in c.points if (h := p.mean("harm")) is not None]
    return replace(
        bare,
        immunization=record.id,
        attacks=tuple(c.record for c in curves),
        tokens=record.spend.tokens,
        flops=record.spend.flops,
        utility=utility,
        kept=min(1.0, utility / bar.floor) if bar.floor else 0.0,
        breach=least if math.isfinite(least) else None,
        harm=sum(harms) / len(harms) if harms else None,
    )


# -------------------------------------------------------------------------------------------------------------- test


def _published(zoo: Zoo, name: str, best: Trial, out: Path) -> str:
    """The chosen model as a plain folder with the record of how it was made."""
    store, target = Store(out), out / "models" / name
    record = store.finished(best.immunization)
    target.mkdir(parents=True, exist_ok=True)
    publish(store.folder(best.immunization) / MODEL, target, record, zoo.data)
    return str(target)


def summarize(
    zoo: Zoo,
    trials: Mapping[str, Sequence[Trial]],
    chosen: Mapping[str, Trial],
    results: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> Json:
    """Everything the page says, as JSON without curves."""
    from titer.defences import DEFENCES

    store = Store(out)
    rows = {name: _row(one) for name, one in results.items()}
    for name, tried in trials.items():
        row = rows.setdefault(name, {"conditions": {}, "flags": [], "records": []})
        row["trials"] = [to_json(t) for t in tried]
        row["chosen"] = -1 if chosen[name].error else list(tried).index(chosen[name])
        if row["chosen"] >= 0:
            row["made"] = _made(store.finished(chosen[name].immunization))
    return {
        "schema": 1,
        "created": now(),
        "environment": to_json(environment()),
        "zoo": to_json(zoo),
        "rows": rows,
        "not_run": [name for name in DEFENCES if not any(name in given.split("+") for given in zoo.defences)],
        "wall_seconds": _seconds(store, rows),
    }


def _row(result: Mapping[str, Any]) -> Json:
    """A model's verdicts without what only charts need, its flags and runs."""
    left = ("details", "records")  # what only charts need, and runs that `records` has
    conditions = {name: {k: v for k, v in one.items() if k not in left} for name, one in result["conditions"].items()}
    details = result["conditions"]["resistance"]["details"]
    for key, unit in (("ratio", UNIT), ("worst", "steps")):
        found = to_json(details.get(key, {}).get(unit, {}))
        conditions["resistance"][key] = {unit: {k: v for k, v in found.items() if k not in left}}
    flags = [{"code": f["code"], "message": f["message"]} for f in result["flags"]]
    return {"conditions": conditions, "flags": flags, "records": result["records"]}


def _made(record: RunRecord) -> Json:
    run, steps = record.spec, max(int(record.result["steps"]), 1)
    per_step = {"tokens": record.spend.tokens / steps, "flops": record.spend.flops / steps}
    kept = {k: record.result.get(k) for k in ("steps", "weight_change", "objective", "passes")}
    return {"id": record.id, "train": run["train"], "spend": to_json(record.spend), "per_step": per_step, **kept}


def _seconds(store: Store, rows: Mapping[str, Json]) -> float:
    """Seconds of all runs that the table rests on, each counted once."""
    tried = [i for r in rows.values() for t in r.get("trials", ()) for i in (t["immunization"], *t["attacks"])]
    ids = {i for r in rows.values() for i in r["records"]} | {i for i in tried if i}
    found = [record for i in ids if (record := store.record(i)) is not None]
    return sum(float(r.environment.get("wall_seconds", 0.0)) for r in found)


# -------------------------------------------------------------------------------------------------------------- page


def write_page(found: Mapping[str, Any], target: Path, command: str) -> None:
    """Write the page, its plot (`img/NAME.svg` beside it) and the numbers behind both (`NAME.json`)."""
    picture = target.parent / "img" / f"{target.stem}.svg"
    write_text(picture, plot(spots(found)))
    write_json(target.with_suffix(".json"), found)
    write_text(target, render(found, f"img/{picture.name}", command))
