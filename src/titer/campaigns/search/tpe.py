"""Settings proposed by Optuna's TPE, and the journal they are kept in."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
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
from titer.runs.locks import Claims
from titer.schema.errors import TiterError
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
    stopped, without rerunning its finished trials; one at a time works on a journal. Raises `TiterError` when it is
    damaged or cannot be written.
    """
    if journal is None:
        return searched(run_attack, plan, bar, None, on_trial)
    where = Path(journal).resolve()
    with Claims(where.parent).waiting(f"search-{spec_id(where.name)}"):
        return searched(run_attack, plan, bar, where, on_trial)


def study_of(plan: Plan, bar: Bar, journal: Path | None) -> Any:
    """The study of this plan, new or continued; trials that an interruption left open are closed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = f"search-{spec_id({'plan': plan, 'bar': bar})}"
    try:
        kept = None if journal is None else storage(journal)
        study: Any = optuna.create_study(storage=kept, study_name=name, direction="minimize", load_if_exists=True)
        for trial in study.trials:
            if trial.state == optuna.trial.TrialState.WAITING:
                # enqueued and not begun: else it would be asked for next
                study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
            if trial.state == optuna.trial.TrialState.RUNNING:
                close(study, trial, plan, bar)
        for trial in study.trials:
            from_json(Trial, trial.user_attrs.get("trial", to_json(EMPTY)))
    except (TiterError, MemoryError):
        raise
    except Exception as error:  # Optuna replays whatever the lines say, and fails in its own ways
        if journal is None:
            raise
        raise damaged(journal, f"{type(error).__name__}") from None
    study.sampler = optuna.samplers.TPESampler(seed=plan.seed + len(study.trials))
    return study


def ask(study: Any, plan: Plan, attack: Named | None) -> tuple[Any, Named]:
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


def value(trial: Trial, plan: Plan, phi: float) -> float:
    """What TPE minimises: the log price of a breach; without one, worse than any, and the worse the less harm."""
    if trial.price is not None:
        return math.log1p(trial.confirmed if trial.confirmed is not None else trial.price)
    return math.log1p(plan.top) + 1.0 - min(trial.harm / phi, 1.0)


def searched(run_attack: RunAttack, plan: Plan, bar: Bar, journal: Path | None, on_trial: OnTrial) -> Found:
    """The search itself, by whoever alone works on the journal."""
    study = study_of(plan, bar, journal)
    trials = [from_json(Trial, t.user_attrs["trial"]) for t in study.trials if "trial" in t.user_attrs]
    while not (reason := why_over(trials, plan)):
        wave, rung, attack = upcoming(trials, plan)
        asked, setting = ask(study, plan, attack)
        trial = tried(run_attack, plan, bar, trials, replace(EMPTY, attack=setting, wave=wave, rung=rung))
        asked.set_user_attr("trial", to_json(trial))
        study.tell(asked, value(trial, plan, bar.phi))
        trials.append(trial)
        on_trial(trial)
    return outcome(trials, plan, reason)


def close(study: Any, trial: Any, plan: Plan, bar: Bar) -> None:
    """Close a trial that was open when the search was stopped: as done when its result is kept, else as failed."""
    import optuna

    kept = trial.user_attrs.get("trial")
    if kept is None:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial.number, value(from_json(Trial, kept), plan, bar.phi))


def storage(journal: Path) -> Any:
    """Optuna's storage in a file, which this process alone works on: what a killed one left is cleared away.

    A line is whole or not there: one that was cut off is dropped, and a disk that fills up leaves none.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Lines(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            size = journal.stat().st_size
            try:
                super().append_logs(logs)
            except OSError as error:
                with suppress(OSError):
                    os.truncate(journal, size)
                raise _unwritable(journal, error) from None

    try:
        for left in journal.parent.glob(f"{journal.name}.lock*"):
            left.unlink(missing_ok=True)
        _mend(journal)
        return JournalStorage(Lines(str(journal)))
    except OSError as error:
        raise _unwritable(journal, error) from None


def _mend(journal: Path) -> None:
    """Drop what a stop left of the last lines of a journal; `TiterError` for damage before that."""
    if not journal.exists():
        return
    data = journal.read_bytes()
    lines = data.splitlines(keepends=True)
    sound = [line.endswith(b"\n") and _is_object(line) for line in lines]
    first_bad = sound.index(False) if False in sound else len(lines)
    if any(sound[first_bad:]):
        raise damaged(journal, f"line {first_bad + 1}")
    good = sum(map(len, lines[:first_bad]))
    if good < len(data):
        os.truncate(journal, good)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _unwritable(journal: Path, error: OSError) -> TiterError:
    return TiterError(f"{journal}: cannot be written: {error.strerror}: free space or mend it, then run again")


def damaged(journal: Path, what: str) -> TiterError:
    """The one line about a journal that cannot be read."""
    return TiterError(f"{journal}: damaged ({what}): remove it and search again: the runs made so far are kept")
