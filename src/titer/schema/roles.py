"""Which data plays which role, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from titer.schema.errors import TiterError
from titer.schema.specs import Compute, ImmunizeRun, Named, Selection, TrainArgs

TAGS = ("seen", "unseen", "withheld", "cross")


@dataclass(frozen=True)
class Roles:
    """Roles of one data set's categories.

    `defended` categories (of the defended domain) are shown to the defence, `withheld` ones (same domain) never are,
    and `cross` are the restricted categories of every other domain. `open_dataset` holds the benign examples.
    `blocks` are set where models defended on different categories are compared (`in_blocks`): every attack for
    generalization then trains on one block, and its label names it, `withheld:potions`. `has_open` says whether there
    are benign examples at all.
    """

    dataset: str
    open_dataset: str
    defended: tuple[str, ...]
    withheld: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    has_open: bool = True

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

    def immunize(
        self, model: str, defence: Named, train: TrainArgs, *, base: str = "", seed: int = 0, compute: Compute
    ) -> ImmunizeRun:
        """The run that defends a model on its split of the defended categories, with the benign rows it may keep."""
        retain = self.retain() if self.has_open else None
        return ImmunizeRun(model, defence, self.defence(), retain, train, base, seed, compute)

    def attackers_open(self) -> Selection:
        """Benign examples that an attacker may train on: the attack split."""
        return Selection(self.open_dataset, "attack", False)

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


def block_name(names: Sequence[str]) -> str:
    """Categories in a few words: all of up to three, else the first and how many more."""
    return "+".join(names) if len(names) <= 3 else f"{names[0]}+{len(names) - 1} more"
