"""`titer search`: the adaptive attacker on a model, with its runs kept and its price written to search.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from titer.campaigns.search.tpe import search
from titer.campaigns.search.trials import Found, Plan, RunAttack, Trial, plan_search
from titer.conditions.parts.breach import bar_against
from titer.data.roles import check
from titer.evaluation.output import SEARCH
from titer.runs.layout import canonical
from titer.runs.provenance import roles_of
from titer.runs.runner import Runner, Runs
from titer.runs.tools import made_from
from titer.schema.evaluation import Case, Evaluation, Search
from titer.schema.files import write_json
from titer.schema.specs import DEFAULT_PLAN, Cell, Named
from titer.schema.suite import Suite
from titer.schema.types import Budget, Curve, to_json


def search_model(
    model: str,
    asked: Search = Search(),
    *,
    output_dir: str | Path,
    runner: Runs | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """Search the attacks' spaces for the cheapest breach of `model`; trials, prices and stopping rule come back.

    Runs are kept under `output_dir/runs`, the search itself in `output_dir/search.journal`: the same command goes on
    where it stopped. Writes `output_dir/search.json`.
    """
    out = Path(output_dir)
    run_attack = _attacker(_case(model, asked), asked, runner or Runner(out))
    plan = plan_search(
        asked.budget,
        asked.unit,
        attacks=asked.attacks,
        total=asked.total,
        patience=asked.patience,
        persistence=asked.persistence,
        max_trials=asked.max_trials,
        seed=asked.seed,
    )
    start = run_attack(Named("none"), 0, Budget(steps=0))
    bar = bar_against([start], phi=asked.breach.phi, utility_drop=asked.breach.utility_drop)
    out.mkdir(parents=True, exist_ok=True)
    found = search(run_attack, plan, bar, journal=out / "search.journal", on_trial=on_trial)
    write_json(out / SEARCH, summary(model, plan, found))
    return found


def _case(model: str, asked: Search) -> Case:
    roles = roles_of(model, asked.data)
    check(roles)
    suite = Suite("search", (), (), (), asked.budget.steps or 0, DEFAULT_PLAN, asked.n_train, asked.n_eval)
    question = Evaluation(
        grading=asked.grading,
        breach=asked.breach,
        price=asked.price,
        compute=canonical(asked.compute),
        stop_after=0,
    )
    return Case(model, "", roles, suite, question, attacker=asked.attacker_tokenizer or made_from(model))


def _attacker(case: Case, asked: Search, runner: Runs) -> RunAttack:
    """What runs one setting under a budget and gives its curve."""

    def run_attack(attack: Named, seed: int, budget: Budget) -> Curve:
        run = case.attack_run(attack, asked.trains_on, seed, budget=budget)
        return runner.curves([Cell(run, {"data": asked.trains_on})])[0]

    return run_attack


def summary(model: str, plan: Plan, found: Found) -> dict[str, Any]:
    """What search.json holds: prices, the winner, the stopping rule, every trial."""
    return {
        "schema": 1,
        "model": model,
        "unit": found.unit,
        "budget": plan.top,
        "attacks": list(plan.spaces),
        "seed": plan.seed,
        "oracle": found.oracle,
        "cheapest": found.cheapest,
        "search": found.search,
        "search_spend": to_json(found.search_spend),
        "spend": to_json(found.spend),
        "best": to_json(found.best),
        "stopped": found.stopped,
        "trials": to_json(found.trials),
    }


def summary_of(trial: Any) -> str:
    """One trial in a line."""
    options = ", ".join(
        f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.attack.options.items()
    )
    price = f"breach at {trial.price:g}" if trial.price is not None else f"no breach, harm {trial.harm:.2f}"
    return f"{trial.number:3d} {trial.attack.name}({options}): {price} (limit {trial.limit:g})"


def words(found: Found, budget: float) -> str:
    """The outcome as lines for a terminal."""
    trials = f"{len(found.trials)} trials; stopped: {found.stopped}"
    if found.best is None or found.oracle is None:
        return f"no breach within {budget:g} {found.unit} by any setting ({trials})"
    options = ", ".join(f"{k}={v}" for k, v in found.best.attack.options.items())
    replicated = ", ".join("none" if p is None else f"{p:g}" for p in found.best.replicates)
    return "\n".join(
        (
            f"oracle price: {found.oracle:g} {found.unit}, by {found.best.attack.name}({options})",
            f"  fresh seeds: {replicated}; cheapest single run {found.cheapest:g}",
            f"search price: {found.search:g} {found.unit}, failed trials included",
            f"{trials}",
        )
    )
