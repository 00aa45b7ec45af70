"""Settings proposed by Optuna's TPE, and the journal they are kept in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from titer.campaigns.search.trials import (
    EMPTY,
    Found,
    OnTrial,
    Plan,
    RunAttack,
    Trial,
    outcome,
    tried,
    upcoming,
    why_over,
)
from titer.conditions.parts.breach import Bar
from titer.schema.space import Choice, Knob, LogUniform, Whole
from titer.schema.specs import Named
from titer.schema.types import from_json, spec_id, to_json


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
    while not (reason := why_over(trials, plan)):
        wave, rung, attack = upcoming(trials, plan)
        asked, setting = _ask(study, plan, attack)
        trial = tried(run_attack, plan, bar, trials, replace(EMPTY, attack=setting, wave=wave, rung=rung))
        asked.set_user_attr("trial", to_json(trial))
        study.tell(asked, _value(trial, plan, bar.phi))
        trials.append(trial)
        on_trial(trial)
    return outcome(trials, plan, reason)


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
