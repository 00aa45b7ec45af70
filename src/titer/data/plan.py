"""Which data plays which role: what the defence sees, what each attack trains on, what is asked at the probes.

Everything is a `Selection` on hash splits, so defence, attack and evaluation prompts are disjoint by construction;
`check` proves it again with the audit, near duplicates included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from titer.data.audit import NEAR, require_disjoint
from titer.data.load import load
from titer.data.split import categories, prompt_hash, select, split_of
from titer.errors import TiterError
from titer.specs import Selection
from titer.types import Example

TAGS = ("seen", "unseen", "withheld", "cross")


@dataclass(frozen=True)
class DataPlan:
    """Roles of one data set's categories.

    `defended` categories (of the defended domain) are shown to the defence, `withheld` ones (same domain) never are,
    and `cross` are the restricted categories of every other domain. `open_dataset` holds the benign examples.
    `blocks` are set where models defended on different categories are compared (`in_blocks`): every attack for
    generalization then trains on one block, and its label names it, `withheld:potions`.
    """

    dataset: str
    open_dataset: str
    defended: tuple[str, ...]
    withheld: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()

    def defence(self) -> Selection:
        """Restricted examples for the defence: its split of the defended categories."""
        return Selection(self.dataset, "defence", True, self.defended)

    def retain(self) -> Selection:
        """Benign examples the defence may train on to stay capable."""
        return Selection(self.open_dataset, "defence", False)

    def attack(self, tag: str, n: int | None, seed: int) -> Selection:
        """What an attack trains on: `unseen` samples of the defended categories, `withheld` ones, the `cross` domain,
        or `seen`, the very samples of the defence (its best case)."""
        if tag == "seen":
            return replace(self.defence(), n=n, seed=seed)
        return Selection(self.dataset, "attack", True, self.categories(tag), n=n, seed=seed)

    def harm(self, tag: str, n: int | None) -> Selection:
        """Held-out restricted prompts of the categories an attack trains on."""
        return Selection(self.dataset, "evaluation", True, self.categories(tag), n=n)

    def utility(self, n: int | None) -> Selection:
        """Held-out benign prompts, outside the defence's retain data."""
        return Selection(self.open_dataset, "evaluation", False, n=n)

    def inside(self, n: int | None) -> Selection:
        """Benign prompts inside the defence's retain data."""
        return replace(self.retain(), n=n)

    def categories(self, tag: str) -> tuple[str, ...]:
        """The restricted categories behind a tag or a label; `TiterError` when the plan has none."""
        kind, _, name = tag.partition(":")
        if name:
            return next(b for b in (self.defended, *self.blocks) if block_name(b) == name)
        found = {"withheld": self.withheld, "cross": self.cross}.get(kind, self.defended)
        if not found:
            raise TiterError(
                f"data set {self.dataset}: no {tag} categories: name some with --withhold or drop the tag"
            )
        return found

    def label(self, tag: str) -> str:
        """What runs on a tag's data are called: the tag, and the categories where there are blocks."""
        return f"{tag}:{block_name(self.categories(tag))}" if self.blocks else tag

    def wide(self) -> tuple[str, ...]:
        """The labels of attack data for generalization: withheld and cross, or every block but the defended one."""
        if not self.blocks:
            return tuple(t for t in self.tags() if t in ("withheld", "cross"))
        parts = {"unseen": self.defended, "withheld": self.withheld, "cross": self.cross}
        inside = [(t, b) for b in self.blocks for t, cs in parts.items() if set(b) <= set(cs) and b != self.defended]
        return tuple(f"{t}:{block_name(b)}" for t, b in inside)

    def tags(self) -> tuple[str, ...]:
        """The tags this plan can serve."""
        return tuple(t for t in TAGS if t not in ("withheld", "cross") or getattr(self, t))


def plan_data(
    dataset: str, *, open_dataset: str = "", domain: str = "", withhold: Sequence[str] | None = None
) -> DataPlan:
    """Roles for a data set: defend `domain` (default: the first restricted one) but for the `withhold` categories.

    `withhold` None withholds the last category of the domain when it has more than one; `()` withholds nothing.
    """
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
    return DataPlan(dataset, open_dataset or dataset, defended, held, cross)


def block_name(names: Sequence[str]) -> str:
    """Categories in a few words: all of up to three, else the first and how many more."""
    return "+".join(names) if len(names) <= 3 else f"{names[0]}+{len(names) - 1} more"


def in_blocks(plans: Sequence[DataPlan]) -> list[DataPlan]:
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


def check(plan: DataPlan) -> dict[str, Any]:
    """Prove the roles disjoint (exact and near duplicates); `TiterError` names the first overlap.

    Returns the audit: every set with its size, its categories and the digest of its prompts.
    """
    return _checked(plan, load(plan.dataset).hash, load(plan.open_dataset).hash)


@lru_cache(maxsize=16)
def _checked(plan: DataPlan, content: str, open_content: str) -> dict[str, Any]:
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
