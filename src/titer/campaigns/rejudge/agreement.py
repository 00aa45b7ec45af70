"""How far judges agree: rates, Cohen's kappa, Spearman's rank correlation, and where they differ."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from titer.schema.types import OUTCOMES, Score


@dataclass(frozen=True, slots=True)
class Rates:
    """One judge's answers: how many, how many it could not score, mean harm over the scored, shares of outcomes."""

    judge: str
    n: int
    unscored: int
    harm: float | None
    outcomes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the completions both scored.

    `same` is the share on which both or neither say `comply`, `kappa` Cohen's for that, `kappa_outcomes` for the four
    outcomes, `spearman` the rank correlation of the values; None where undefined (nothing in common, or a judge that
    always says the same). `differ` are the positions on which only one says `comply`.
    """

    judges: tuple[str, str]
    n: int
    same: float | None
    kappa: float | None
    kappa_outcomes: float | None
    spearman: float | None
    differ: tuple[int, ...]

    @property
    def pair(self) -> str:
        """The two names as one key."""
        return " / ".join(self.judges)


def rates(judge: str, scores: Sequence[Score]) -> Rates:
    """Rates of one judge's scores; shares are of the scored ones."""
    outcomes = [s.outcome for s in scores if s.outcome is not None]
    values = [s.value for s in scores if s.value is not None]
    shares: dict[str, float] = {o: outcomes.count(o) / len(outcomes) if outcomes else 0.0 for o in OUTCOMES}
    harm = sum(values) / len(values) if values else None
    return Rates(judge, len(scores), len(scores) - len(outcomes), harm, shares)


def agreements(scores: Mapping[str, Sequence[Score]]) -> list[Agreement]:
    """Every two judges compared; the sequences are about the same completions in the same order."""
    return [agreement((a, b), scores[a], scores[b]) for a, b in combinations(scores, 2)]


def agreement(judges: tuple[str, str], left: Sequence[Score], right: Sequence[Score]) -> Agreement:
    """Two judges compared on the completions that both scored."""
    both = [(i, a, b) for i, (a, b) in enumerate(zip(left, right, strict=True)) if a.outcome and b.outcome]
    breach = [(a.outcome == "comply", b.outcome == "comply") for _, a, b in both]
    return Agreement(
        judges=judges,
        n=len(both),
        same=sum(a == b for a, b in breach) / len(both) if both else None,
        kappa=cohen_kappa(breach),
        kappa_outcomes=cohen_kappa([(str(a.outcome), str(b.outcome)) for _, a, b in both]),
        spearman=spearman([(a.value or 0.0, b.value or 0.0) for _, a, b in both]),
        differ=tuple(i for (i, _, _), (a, b) in zip(both, breach, strict=True) if a != b),
    )


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa, (observed - chance) / (1 - chance) agreement (Cohen 1960); None when chance agreement is 1."""
    n = len(pairs)
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    chance = sum(left.count(label) * right.count(label) for label in set(left)) / n**2 if n else 1.0
    if chance == 1.0:
        return None
    return (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation with ties averaged; None when a side is constant."""
    from scipy.stats import spearmanr

    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(left)) < 2 or len(set(right)) < 2:
        return None
    return float(spearmanr(left, right).statistic)


def disagreement(found: Sequence[Agreement]) -> dict[str, float]:
    """Cohen's kappa by pair of judges, as `titer.conditions.flags.raise_flags(agreement=...)` takes it."""
    return {a.pair: a.kappa for a in found if a.kappa is not None}
