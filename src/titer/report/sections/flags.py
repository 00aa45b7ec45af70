"""Raised flags, the gravest first."""

from __future__ import annotations

from dataclasses import dataclass

from titer.report.read import Reading

TITLE = "Flags"
# What a flag does to the verdicts. Gravest first, within a group too; a code that is in neither counts as "weaker".
VOID = (
    "control-not-breached", "inert", "inert-defence", "data-overlap", "unsafe-at-start", "unscored", "judges-disagree",
    "attack-did-not-fit", "diverged",
)  # fmt: skip
NOTE = ("few-prompts", "few-seeds", "breach-at-last-probe")
RANKS = ("may void a verdict", "resistance may be weaker than shown", "less certain than it looks")


@dataclass(frozen=True, slots=True)
class Raised:
    """A flag as shown: how grave, what was seen (model, message, runs), what it means and what to do about it."""

    code: str
    rank: int
    seen: tuple[tuple[str, str, tuple[str, ...]], ...]
    meaning: str
    what_to_do: str

    @property
    def words(self) -> str:
        """What the flag does to the verdicts."""
        return RANKS[self.rank]


def view(reading: Reading) -> list[Raised]:
    """The flags of all models by code, ranked; the same words once."""
    found: dict[str, dict[str, tuple[str, str, tuple[str, ...]]]] = {}
    for model in reading.models:
        for flag in model.flags:
            found.setdefault(flag.code, {}).setdefault(flag.message, (model.name, flag.message, flag.records))
    raised = [Raised(code, rank(code), tuple(seen.values()), *_advice(code)) for code, seen in found.items()]
    return sorted(raised, key=lambda r: (r.rank, _place(r.code)))


def rank(code: str) -> int:
    """0 where a flag may void a verdict, 1 where it may flatter one, 2 where a number is less certain."""
    return 0 if code in VOID else 2 if code in NOTE else 1


def _place(code: str) -> int:
    known = (*VOID, *NOTE)
    return known.index(code) if code in known else len(known)


def _advice(code: str) -> tuple[str, str]:
    from titer.conditions.flags import FLAGS

    page = next((f for f in FLAGS if f.code == code), None)
    return (page.meaning, page.what_to_do) if page else ("", "")
