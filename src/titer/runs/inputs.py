"""What a run reads, as hashes, and its content address."""

from __future__ import annotations

from titer.attacks import ATTACKS, Attack, make_attack
from titer.data.corpus import read_corpus
from titer.data.load import load
from titer.defences import DEFENCES, Defence, Sum, configure
from titer.judges.parts.identity import identity
from titer.models.load import bare, resolve
from titer.models.weights import fingerprint
from titer.runs.tools import foreign, tools_hash
from titer.schema.errors import TiterError
from titer.schema.specs import AttackRun, ImmunizeRun, Run, run_id, selections


def inputs(run: Run) -> dict[str, str]:
    """Fingerprints of everything a run reads: its model, other models it is held against, judges and data sets."""
    fresh = run.model == "organism/random" or run.model.startswith("random:")
    where = fingerprint(resolve(bare(run.model)))
    found = {"model": f"random:{where}" if fresh else where}
    if isinstance(run, ImmunizeRun) and run.base:
        found["base"] = fingerprint(resolve(run.base))
    found |= named_by_options(run)
    if isinstance(run, AttackRun):
        if name := reference(run):
            found["reference"] = fingerprint(resolve(name))
        if foreign(run):
            found["tools"] = tools_hash(run.tools)
        found |= {f"judge:{judge}": known for judge in judges_of(run) if (known := identity(judge))}
    return found | {s.dataset: load(s.dataset).hash for s in selections(run).values()}


def named_by_options(run: Run) -> dict[str, str]:
    """Fingerprints of the models and corpora that options of the defence or the attack name.

    A method that cannot be built names none: it is told when it is run, after what can be done.
    """
    kind, configured_run = (DEFENCES, run.defence) if isinstance(run, ImmunizeRun) else (ATTACKS, run.attack)
    try:
        if not any(_names_others(kind.find(name)) for name in configured_run.name.split("+")):
            return {}  # as nearly all: building one only to see that is most of the time of an id
        members = _members(run)
    except TiterError:
        return {}
    found = {}
    for member in members:
        for option in getattr(member, "models", ()):
            if name := getattr(member, option):
                found[f"{member.name}.{option}"] = fingerprint(resolve(name))
        for option in getattr(member, "corpora", ()):
            if folder := getattr(member, option):
                found[f"{member.name}.{option}"] = read_corpus(folder).hash
    return found


def _names_others(cls: type) -> bool:
    return bool(getattr(cls, "models", ()) or getattr(cls, "corpora", ()))


def _members(run: Run) -> tuple[Defence | Attack, ...]:
    """The configured defences or the attack of a run."""
    if isinstance(run, ImmunizeRun):
        defence = configure(run.defence.name, run.defence.options)
        return defence.members if isinstance(defence, Sum) else (defence,)
    return (make_attack(run.attack.name, run.attack.options),)


def judges_of(run: AttackRun) -> list[str]:
    """The judges that score a run's probe sets, each once."""
    return list(dict.fromkeys(p.judge for p in run.probes))


def reference(run: AttackRun) -> str:
    """The other model that probe sets compare with, "" for none; `TiterError` when there are several."""
    found = list(dict.fromkeys(p.reference for p in run.probes if p.reference))
    if len(found) > 1:
        raise TiterError(f"probe sets: {found[0]} and {found[1]}: a run compares with one reference")
    return found[0] if found else ""


def identify(run: Run) -> str:
    """The content address of a run."""
    return run_id(run, inputs(run))
