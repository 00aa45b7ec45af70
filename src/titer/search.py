"""The adaptive attacker: look through the union of the attacks' spaces for the cheapest breach, and charge the search.

Trials come in waves: first the known strong settings, then waves of settings proposed by TPE. While nothing has
breached, a wave climbs a ladder of limits (T/8, T/4, T/2, T by default), the most harmful setting first and on to the
top: a cheap breach is found at a cheap limit, and a setting is dropped only when its harm is neither among the best
half nor still rising. Once a breach is confirmed, no
trial may spend more than its price, because it could not beat it. Attacks are run by the caller's `run_attack`, so
the search knows no model; what to do next follows from the trials so far, so a search can stop and go on anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from titer.attacks import ATTACKS
from titer.attacks.space import Choice, Knob, LogUniform, Options, Space, Whole
from titer.conditions.breach import Bar, Unit, crossing, kind
from titer.errors import TiterError
from titer.registry import find
from titer.specs import Named
from titer.types import Budget, Curve, Point, Spend, from_json, spec_id, to_json

RunAttack = Callable[[Named, int, Budget], Curve]  # attack, seed, budget -> curve; should stop at a breach
OnTrial = Callable[["Trial"], None]
LUCK = 4.0  # fresh seeds may spend this many times the price that a trial has shown


@dataclass(frozen=True)
class Plan:
    """What is searched and when it stops. Prices are in `unit`, of which `budget` gives each trial T at most.

    `known` settings are tried first; `fixed` options are added to every setting of an attack. The search ends after
    `patience` proposed settings without a cheaper breach (`persistence` without any), after `max_trials`, or with
    `total` spent in `unit`, replications included (it may exceed `total` by less than one trial's limit).
    """

    spaces: Mapping[str, Space]
    known: tuple[Named, ...]
    budget: Budget
    unit: Unit = "steps"
    fixed: Mapping[str, Options] = field(default_factory=dict)
    total: float | None = None
    patience: int = 16
    persistence: int = 48
    max_trials: int = 300
    rungs: int = 4
    wave: int = 8
    replicates: int = 3
    seed: int = 0

    @property
    def top(self) -> float:
        """T, what one trial may spend at most."""
        limit = getattr(self.budget, self.unit)
        if limit is None:
            raise TiterError(f"search: the budget says nothing about {self.unit}: pass --budget.{self.unit}")
        return float(limit)


@dataclass(frozen=True)
class Trial:
    """One setting tried under a limit. Prices are None without a breach; `replicates` are those of fresh seeds.

    `harm` is the highest mean harm seen with utility kept, `rising` whether the last probe was the highest; `records`
    are the ids of its run and its replications.
    """

    number: int
    attack: Named
    wave: int
    rung: int
    limit: float
    price: float | None
    spend: Spend
    harm: float = 0.0
    rising: bool = False
    end: str = "finished"
    replicates: tuple[float | None, ...] = ()
    replication: Spend = Spend()
    records: tuple[str, ...] = ()

    @property
    def confirmed(self) -> float | None:
        """The median price over fresh seeds, None when fewer than half of them breached or none were run."""
        ordered = sorted(math.inf if p is None else p for p in self.replicates)
        middle = ordered[math.ceil(len(ordered) / 2) - 1] if ordered else math.inf
        return None if math.isinf(middle) else middle


@dataclass(frozen=True)
class Found:
    """What a search found. Prices are in `unit`; None means no breach (right-censored at the plan's T).

    `oracle` is the price of the cheapest confirmed setting to one who knew it: its median over fresh seeds. `cheapest`
    is the cheapest single run of it. `search` is everything spent up to the end of the first confirmed breach, failed
    trials included and replications not: the attacker needs none.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    oracle: float | None
    cheapest: float | None
    search: float | None
    search_spend: Spend | None
    spend: Spend
    unit: Unit
    stopped: str


def plan_search(
    budget: Budget,
    unit: Unit = "steps",
    *,
    attacks: Sequence[str] = (),
    fixed: Mapping[str, Options] | None = None,
    **settings: Any,
) -> Plan:
    """A plan over the attacks' own spaces and known settings (default: every attack that needs no further input).

    `fixed` gives options that the search leaves alone (`{"merge-with-base": {"base": NAME}}`) and brings in the
    attack; `settings` are further fields of `Plan`.
    """
    given = fixed or {}
    names = attacks or [n for n in ATTACKS if n not in ("none", "merge-with-base") or n in given]
    classes = {name: find("attack", ATTACKS, name) for name in names}
    spaces = {n: {k: v for k, v in c.space.items() if k not in given.get(n, {})} for n, c in classes.items()}
    known = [Named(n, {**options, **given.get(n, {})}) for n, c in classes.items() for options in c.known]
    return Plan(spaces, tuple(known), budget, unit, given, **settings)


def search(
    run_attack: RunAttack,
    plan: Plan,
    bar: Bar,
    *,
    journal: str | Path | None = None,
    on_trial: OnTrial = lambda trial: None,
) -> Found:
    """Look for the cheapest breach of whatever `run_attack` attacks.

    With `journal`, trials are kept in that file (Optuna's journal) and a search over the same plan goes on where it
    stopped, without rerunning its finished trials.
    """
    study = _study(plan, bar, journal)
    trials = [from_json(Trial, t.user_attrs["trial"]) for t in study.trials if "trial" in t.user_attrs]
    while not (reason := _over(trials, plan)):
        wave, rung, attack = upcoming(trials, plan)
        asked, setting = _ask(study, plan, attack)
        trial = _try(run_attack, plan, bar, trials, replace(EMPTY, attack=setting, wave=wave, rung=rung))
        asked.set_user_attr("trial", to_json(trial))
        study.tell(asked, _value(trial, plan, bar.phi))
        trials.append(trial)
        on_trial(trial)
    return _found(trials, plan, reason)


EMPTY = Trial(0, Named(""), 0, 0, 0.0, None, Spend())


# -------------------------------------------------------------------------------------------------- what comes next


def upcoming(trials: Sequence[Trial], plan: Plan) -> tuple[int, int, Named | None]:
    """Wave, rung and setting of the next trial; setting None asks the sampler. Follows from the trials alone."""
    if not trials:
        return (0, 0, plan.known[0]) if plan.known else (1, 0, None)
    wave = trials[-1].wave
    begun = len(_cohort(trials, wave, 0))
    queue: Sequence[Named | None] = plan.known if wave == 0 else [None] * plan.wave
    if begun < len(queue):
        return wave, 0, queue[begun]
    climber = _climber(trials, plan, wave) if best_of(trials) is None else None
    return (wave, climber.rung + 1, climber.attack) if climber else (wave + 1, 0, None)


def _cohort(trials: Sequence[Trial], wave: int, rung: int) -> list[Trial]:
    return [t for t in trials if (t.wave, t.rung) == (wave, rung)]


def _climber(trials: Sequence[Trial], plan: Plan, wave: int) -> Trial | None:
    """The most harmful of the wave's trials whose setting deserves a higher limit and has not had it yet."""
    rungs = [_cohort(trials, wave, r) for r in range(plan.rungs)]
    had = [{spec_id(t.attack) for t in rung} for rung in rungs]
    open_ = [
        t
        for r, rung in enumerate(rungs[:-1])
        for t in _survivors(rung, plan.unit)
        if spec_id(t.attack) not in had[r + 1]
    ]
    return max(open_, key=lambda t: (t.harm, t.rung, -t.number), default=None)


def _survivors(cohort: Sequence[Trial], unit: Unit) -> list[Trial]:
    """Trials whose settings are worth a higher limit: the best half by harm and all whose harm still rises.

    One that ended before its limit (nothing left to do, diverged, an error) would do the same under a higher one.
    """
    sound = (t for t in cohort if t.end != "diverged" and _in(unit, t.spend) >= math.floor(t.limit))
    ranked = sorted(sound, key=lambda t: (-t.harm, t.number))
    half = math.ceil(len(cohort) / 2)
    return [t for i, t in enumerate(ranked) if i < half or t.rising]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the cheapest confirmed price."""
    confirmed = [(t.confirmed, t.number, t) for t in trials if t.confirmed is not None]
    return min(confirmed)[2] if confirmed else None


def limit_at(trials: Sequence[Trial], plan: Plan, rung: int) -> float:
    """What the next trial may spend: its rung's share of T, or just less than the cheapest confirmed breach."""
    best = best_of(trials)
    if best is None or best.confirmed is None:
        return max(plan.top / float(2 ** max(plan.rungs - 1 - rung, 0)), min(1.0, plan.top))
    return max(best.confirmed - 1, 0.0) if plan.unit == "steps" else best.confirmed


def _over(trials: Sequence[Trial], plan: Plan) -> str:
    """Why the search is over; empty while it is not."""
    best = best_of(trials)
    if best is not None and best.confirmed == 0:
        return "a breach costs nothing"
    if plan.total is not None and _in(plan.unit, _sum(trials)) >= plan.total:
        return f"total of {plan.total:g} {plan.unit} spent"
    if len(trials) >= plan.max_trials:
        return f"{plan.max_trials} trials"
    proposed = [t for t in trials if t.wave > 0 and (best is None or t.number > best.number)]
    climbing = best is None and bool(trials) and upcoming(trials, plan)[1] > 0
    enough, what = (plan.persistence, "breach") if best is None else (plan.patience, "cheaper breach")
    if len({spec_id(t.attack) for t in proposed}) >= enough and not climbing:
        return f"{enough} proposed settings without a {what}"
    return ""


# ---------------------------------------------------------------------------------------------------- one trial


def _try(run_attack: RunAttack, plan: Plan, bar: Bar, trials: Sequence[Trial], trial: Trial) -> Trial:
    """Run a setting under its limit; a price below the cheapest confirmed one is checked on fresh seeds at once."""
    limit = limit_at(trials, plan, trial.rung)
    try:
        curve = run_attack(trial.attack, plan.seed, _budget(plan, limit))
    except TiterError as error:  # an attack that lacks what it needs costs nothing and ends nothing
        return replace(trial, number=len(trials), limit=limit, end=f"error: {error}")
    price = crossing(curve, bar).seen(plan.unit)
    harms = [_harm(point, bar.of(curve)) for point in curve.points]
    trial = replace(
        trial,
        number=len(trials),
        limit=limit,
        price=None if math.isinf(price) else price,
        spend=curve.points[-1].spend if curve.points else Spend(),
        harm=max(harms, default=0.0),
        rising=len(harms) > 1 and harms[-1] > max(harms[:-1]),
        end=curve.end,
        records=(curve.record,),
    )
    best = best_of(trials)
    if trial.price is None or (best and best.confirmed is not None and trial.price >= best.confirmed):
        return trial
    return _replicated(run_attack, plan, bar, trial)


def _replicated(run_attack: RunAttack, plan: Plan, bar: Bar, trial: Trial) -> Trial:
    """The trial with its setting's prices on fresh seeds, each allowed `LUCK` times what the trial showed."""
    assert trial.price is not None
    limit = min(plan.top, LUCK * max(trial.price, 1.0))
    seeds = range(plan.seed + 1, plan.seed + 1 + plan.replicates)
    curves = [run_attack(trial.attack, seed, _budget(plan, limit)) for seed in seeds]
    prices = [crossing(c, bar).seen(plan.unit) for c in curves]
    spent = sum((c.points[-1].spend for c in curves if c.points), Spend())
    return replace(
        trial,
        replicates=tuple(None if math.isinf(p) else p for p in prices),
        replication=spent,
        records=(*trial.records, *(c.record for c in curves)),
    )


def _budget(plan: Plan, limit: float) -> Budget:
    given = to_json(plan.budget)
    return Budget(**{**given, plan.unit: int(limit) if plan.unit in ("steps", "examples", "tokens") else limit})


def _harm(point: Point, bar: Bar) -> float:
    """Mean harm at a probe, 0 where the model is broken rather than harmful."""
    harm = point.mean("harm")
    return 0.0 if harm is None or kind(point, bar) in ("collapse", "incoherent") else harm


def _sum(trials: Sequence[Trial]) -> Spend:
    return sum((t.spend + t.replication for t in trials), Spend())


def _in(unit: Unit, spend: Spend) -> float:
    return float(getattr(spend, unit))


def _found(trials: Sequence[Trial], plan: Plan, reason: str) -> Found:
    best = best_of(trials)
    first = next((t for t in trials if t.confirmed is not None), None)
    until = sum((t.spend for t in trials[: first.number + 1]), Spend()) if first else None
    runs = [p for p in (best.price, *best.replicates) if p is not None] if best else []
    return Found(
        trials=tuple(trials),
        best=best,
        oracle=best.confirmed if best else None,
        cheapest=min(runs, default=None),
        search=_in(plan.unit, until) if until else None,
        search_spend=until,
        spend=_sum(trials),
        unit=plan.unit,
        stopped=reason,
    )


# --------------------------------------------------------------------------------------------------------- Optuna


def _study(plan: Plan, bar: Bar, journal: str | Path | None) -> Any:
    """The study of this plan, new or continued; trials that an interruption left open are closed as failed."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal))) if journal else None
    name = f"search-{spec_id({'plan': plan, 'bar': bar})}"
    study: Any = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    study.sampler = optuna.samplers.TPESampler(seed=plan.seed + len(study.trials))
    return study


def _ask(study: Any, plan: Plan, attack: Named | None) -> tuple[Any, Named]:
    """A trial of the study and its setting: the given one, enqueued and then asked for, or one that TPE proposes."""
    if attack is None:
        trial = study.ask()
        name = trial.suggest_categorical("attack", list(plan.spaces))
        wanted = plan.spaces[name]
    else:
        name, wanted = attack.name, plan.spaces[attack.name]
        wanted = {key: wanted[key] for key in attack.options if key in wanted}
        study.enqueue_trial({"attack": name, **{f"{name}.{key}": attack.options[key] for key in wanted}})
        trial = study.ask()
        trial.suggest_categorical("attack", list(plan.spaces))
    options = {key: suggest(trial, f"{name}.{key}", knob) for key, knob in wanted.items()}
    return trial, Named(name, {**options, **plan.fixed.get(name, {})})


def suggest(trial: Any, name: str, knob: Knob) -> Any:
    """The knob in Optuna's words."""
    if isinstance(knob, Choice):
        return trial.suggest_categorical(name, list(knob.values))
    if isinstance(knob, Whole):
        return trial.suggest_int(name, knob.low, knob.high, log=knob.log)
    return trial.suggest_float(name, knob.low, knob.high, log=isinstance(knob, LogUniform))


def _value(trial: Trial, plan: Plan, phi: float) -> float:
    """What TPE minimises: the log price of a breach; without one, worse than any, and the worse the less harm."""
    if trial.price is not None:
        return math.log1p(trial.confirmed if trial.confirmed is not None else trial.price)
    return math.log1p(plan.top) + 1.0 - min(trial.harm / phi, 1.0)
