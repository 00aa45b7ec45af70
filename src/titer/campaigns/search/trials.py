"""What is tried next, and what was found: pure functions of the trials so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from titer.attacks import ATTACKS
from titer.conditions.parts.breach import Bar, crossing, kind
from titer.schema.errors import DiskTrouble, TiterError
from titer.schema.space import Options, Space
from titer.schema.specs import Named
from titer.schema.types import Budget, Curve, Point, Spend, Unit, spec_id, to_json

RunAttack = Callable[[Named, int, Budget], Curve]  # attack, seed, budget -> curve; should stop at a breach
OnTrial = Callable[["Trial"], None]
UNASKED = ("none", "merge-with-base", "base-difference")  # these need a further model, or do nothing
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


def _plain_first(name: str) -> tuple[bool, str]:
    """The plain fine-tunes first: what breaks most models is to be known before anything subtle is tried."""
    return name not in ("sft", "lora", "sgd"), "" if name == "sft" else name


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
    names = attacks or sorted((n for n in ATTACKS if n not in UNASKED or n in given), key=_plain_first)
    classes = {name: ATTACKS.find(name) for name in names}
    spaces = {n: {k: v for k, v in c.space.items() if k not in given.get(n, {})} for n, c in classes.items()}
    known = [Named(n, {**options, **given.get(n, {})}) for n, c in classes.items() for options in c.known]
    return Plan(spaces, tuple(known), budget, unit, given, **settings)


EMPTY = Trial(0, Named(""), 0, 0, 0.0, None, Spend())


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


def why_over(trials: Sequence[Trial], plan: Plan) -> str:
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


def tried(run_attack: RunAttack, plan: Plan, bar: Bar, trials: Sequence[Trial], trial: Trial) -> Trial:
    """Run a setting under its limit; a price below the cheapest confirmed one is checked on fresh seeds at once."""
    limit = limit_at(trials, plan, trial.rung)
    try:
        curve = run_attack(trial.attack, plan.seed, _budget(plan, limit))
    except DiskTrouble:
        raise
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


def outcome(trials: Sequence[Trial], plan: Plan, reason: str) -> Found:
    """What a search found, from its trials and why it ended."""
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
