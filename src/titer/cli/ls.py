"""What `titer ls` shows: every registered thing in one line."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def listing(what: str) -> dict[str, Rows]:
    """Rows by kind; `what` is a kind or `all`."""
    kinds = {
        "defences": _defences,
        "guards": _guards,
        "attacks": _attacks,
        "suites": _suites,
        "judges": _judges,
        "datasets": _datasets,
        "models": _models,
    }
    return {name: rows() for name, rows in kinds.items() if what in (name, "all")}


def _first_line(cls: Any) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _defences() -> Rows:
    from titer.defences import DEFENCES

    return [_method(name, cls) for name, cls in DEFENCES.items()]


def _guards() -> Rows:
    from titer.guards import GUARDS

    return [_method(name, cls) for name, cls in GUARDS.items()]


def _method(name: str, cls: Any) -> dict[str, Any]:
    return {
        "name": name,
        "what": _first_line(cls),
        "stage": cls.stage,
        "needs": ", ".join(sorted(cls.needs)),
        "passes": cls.passes,
        "source": cls.source,
        "broken by": cls.broken_by,
    }


def _attacks() -> Rows:
    from titer.attacks import ATTACKS
    from titer.schema.registry import find

    found = {name: find("attack", ATTACKS, name) for name in ATTACKS}
    return [{"name": name, "what": _first_line(cls), "source": cls.source} for name, cls in found.items()]


def _suites() -> Rows:
    from titer.evaluation.suites import SUITES

    return [
        {
            "name": s.name,
            "hash": s.hash,
            "members": len(s.members),
            "runs a model": sum(len(m.seeds) for m in s.members),
            "budget (steps)": s.max_steps,
        }
        for s in SUITES.values()
    ]


def _judges() -> Rows:
    from titer.judges import JUDGES
    from titer.schema.registry import find

    return [{"name": name, "what": _first_line(find("judge", JUDGES, name))} for name in JUDGES]


def _datasets() -> Rows:
    from titer.data.published import FORMATS
    from titer.data.rows import EMBEDDED

    rows = [{"name": name, "where": "embedded"} for name in EMBEDDED]
    return rows + [{"name": name, "where": where} for name, where in FORMATS.items()]


def _models() -> Rows:
    from titer.models.embedded import ORGANISM

    return [{"name": f"organism/{kind}"} for kind in ORGANISM] + [{"name": "smollm2"}]
