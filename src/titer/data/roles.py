"""Who sees what of a data set, proven disjoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from titer.data.audit import NEAR, require_disjoint
from titer.data.load import load
from titer.data.select import select
from titer.data.splits import categories, prompt_hash, split_of
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.roles import Roles
from titer.schema.types import Example


def assign(data: Data) -> Roles:
    """Roles for a data set: defend the domain (default: the first restricted one) but for the withheld categories.

    `withhold` None withholds the last category of the domain when it has more than one; `()` withholds nothing.
    """
    dataset, domain, withhold = data.dataset, data.domain, data.withhold
    by_domain = categories(load(dataset).examples)
    if not by_domain:
        raise TiterError(
            f"data set {dataset}: no restricted examples (a harmful response): nothing to defend or attack"
        )
    domain = domain or next(iter(by_domain))
    if domain not in by_domain:
        raise TiterError(f"data set {dataset}: no restricted domain {domain!r}: it has {', '.join(by_domain)}")
    inside = by_domain[domain]
    held = tuple(inside[-1:] if withhold is None and len(inside) > 1 else withhold or ())
    if missing := sorted(set(held) - set(inside)):
        raise TiterError(
            f"data set {dataset}: cannot withhold {missing[0]!r}: domain {domain} has {', '.join(inside)}"
        )
    defended = tuple(c for c in inside if c not in held)
    if not defended:
        raise TiterError(f"data set {dataset}: every category of {domain} is withheld: leave one to defend")
    cross = tuple(c for d, cs in by_domain.items() if d != domain for c in cs)
    opened = data.open_dataset or dataset
    has_open = any(not e.restricted for e in load(opened).examples)
    return Roles(dataset, opened, defended, held, cross, has_open=has_open)


def in_blocks(plans: Sequence[Roles]) -> list[Roles]:
    """The plans with common blocks: categories of one domain that each plan defends together or not at all.

    With them a matrix of defence data x attack data has the same columns for every model. Plans that defend the same
    categories, or are about different data sets, stay as they are.
    """
    if len({p.dataset for p in plans}) > 1 or len({p.defended for p in plans}) == 1:
        return list(plans)
    found: dict[tuple[Any, ...], list[str]] = {}
    for domain, names in categories(load(plans[0].dataset).examples).items():
        for name in names:
            found.setdefault((domain, *(name in p.defended for p in plans)), []).append(name)
    return [replace(p, blocks=tuple(map(tuple, found.values()))) for p in plans]


def check(plan: Roles) -> dict[str, Any]:
    """Prove the roles disjoint (exact and near duplicates); `TiterError` names the first overlap.

    Returns the audit: every set with its size, its categories and the digest of its prompts.
    """
    return _checked(plan, load(plan.dataset).hash, load(plan.open_dataset).hash)


@lru_cache(maxsize=16)
def _checked(plan: Roles, content: str, open_content: str) -> dict[str, Any]:
    """`check`, done once while neither data set changes."""
    sets: dict[str, list[Example]] = {"defence data": select(plan.defence())}
    for tag in plan.tags():
        if tag != "seen":
            sets[f"attack data ({tag})"] = select(plan.attack(tag, None, 0))
            sets[f"evaluation prompts ({tag})"] = select(plan.harm(tag, None))
    opened = [e for e in load(plan.open_dataset).examples if not e.restricted]
    for name, side in (("retain data", "defence"), ("utility prompts", "evaluation")):
        sets[name] = [e for e in opened if split_of(e.prompt) == side]
    require_disjoint(sets)
    rule = f"no prompt is in two sets, none has a word-3-shingle Jaccard index of {NEAR:g} or more with one of another"
    described = {name: _described(examples) for name, examples in sets.items()}
    return {"rule": rule, "exact": 0, "near": 0, "sets": described}


def _described(examples: Sequence[Example]) -> dict[str, Any]:
    names = sorted({e.category for e in examples if e.restricted})
    return {"prompts": len(examples), "digest": digest(e.prompt for e in examples), "categories": names}


def digest(prompts: Iterable[str]) -> str:
    """One hash of a set of prompts, whatever their order: two sets with the same one hold the same prompts."""
    return hashlib.sha256("".join(sorted({prompt_hash(p) for p in prompts})).encode()).hexdigest()[:16]
