"""The first page: one sentence for all, one per model, the verdict table and what was not tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from titer.report.cells import Cell, difference_cell, estimate_cell, number, ratio
from titer.report.read import CONDITIONS, Model, Reading, short
from titer.report.sections.guidelines import missing
from titer.schema.types import Estimate

TITLE = "Verdicts"
SAID = {
    ("stability", "met"): "it kept its abilities",
    ("stability", "not met"): "it lost abilities it had before",
    ("generalization", "met"): "it also holds on attack data the defence never saw",
    ("generalization", "not met"): "it breaks on attack data the defence never saw",
    ("in-domain", "met"): "it also holds on categories the defence never saw",
    ("in-domain", "not met"): "it breaks on categories the defence never saw",
    ("cross-domain", "met"): "it also holds in another domain",
    ("cross-domain", "not met"): "it breaks in another domain",
    ("trainability", "met"): "it still learns harmless tasks as well",
    ("trainability", "not met"): "it learns harmless tasks worse or more slowly",
}

SHORT = {"in-domain": "in-domain generalization", "cross-domain": "cross-domain generalization"}
LINES = ("generalization", "in-domain", "cross-domain")

PROBES = {
    "harm": "harm before attack",
    "inside": "inside retain data",
    "outside": "outside retain data",
    "over_refusal": "over-refusal",
    "likelihood": "answer likelihood",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """One condition of one model."""

    condition: str
    verdict: str
    sentence: str
    cell: Cell
    method: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """One model: what to remember of it, what it costs to break, and its four conditions."""

    name: str
    reference: str
    sentence: str
    price: str
    met: int
    standings: tuple[Standing, ...]


def view(reading: Reading) -> list[Summary]:
    """The standing of every model."""
    return [summarize(model) for model in reading.models]


def summarize(model: Model) -> Summary:
    """The standing of one model."""
    standings = tuple(_standing(model, name) for name in CONDITIONS)
    met = sum(s.verdict == "met" for s in standings)
    return Summary(model.name, short(model.reference), sentence(model), _price(model), met, standings)


def _standing(model: Model, name: str) -> Standing:
    found = model.verdict(name)
    cell = difference_cell(found.estimate) if name == "trainability" else estimate_cell(found.estimate)
    if about := model.about(name):
        cell = replace(cell, sample=" · ".join(filter(None, (PROBES.get(about, about), cell.sample))))
    method = found.estimate.method if found.estimate else ""
    return Standing(name, found.verdict, found.sentence, cell, method)


def _price(model: Model) -> str:
    """The typical price of a breach as so many times the undefended model's."""
    prices = model.prices()
    cell = estimate_cell(prices["model"].times if prices else None)
    return f"{cell.value} the undefended price" if "×" in cell.value else ""


# ------------------------------------------------------------------------------------------------------ bottom line


def bottom_line(models: Sequence[Model]) -> str:
    """The one sentence to repeat: is it immunized, and if not, what stands against it."""
    if len(models) == 1:
        return f"{_standing_words(models[0])}."
    good = [m.name for m in models if _all_met(m)]
    if good:
        return f"{len(good)} of {len(models)} models passed all four conditions: {', '.join(good)}."
    best = max(models, key=_met)
    word = "is immunized" if all(_fails(m) for m in models) else "is shown to be immunized"
    return f"None of the {len(models)} models {word}; the nearest, {best.name}: {_reasons(best)}."


def _all_met(model: Model) -> bool:
    return _met(model) == len(CONDITIONS)


def _met(model: Model) -> int:
    return sum(model.verdict(name).verdict == "met" for name in CONDITIONS)


def _fails(model: Model) -> list[str]:
    return [name for name in CONDITIONS if model.verdict(name).verdict == "not met"]


def _standing_words(model: Model) -> str:
    if _all_met(model):
        return f"{model.name} passed all four conditions: no attack tried breaks it within {_held(model)} steps"
    word = "is not immunized" if _fails(model) else "is not shown to be immunized"
    return f"{model.name} {word}: {_reasons(model)}"


def _reasons(model: Model) -> str:
    """What stands against a model that did not pass: what failed, else what is open."""
    failed = [_failed(model, name) for name in _fails(model)]
    unsettled = [name for name in CONDITIONS if model.verdict(name).verdict != "met"]
    words = _join(failed) if failed else f"not settled or not measured: {', '.join(unsettled)}"
    held = model.verdict("resistance").verdict == "met"
    return f"no attack tried breaks it within {_held(model)} steps, but {words}" if held else words


def _failed(model: Model, condition: str) -> str:
    if condition != "resistance":
        return SAID[condition, "not met"]
    base = _undefended(model)
    against = f" (without the defence: {number(base)})" if base is not None else ""
    return f"fine-tuning breaks it in {_broke(model)} steps{against}"


def _held(model: Model) -> str:
    return number(model.verdict("resistance").threshold)


def _broke(model: Model) -> str:
    found = model.verdict("resistance").estimate
    return number(found.value if found else None)


def _undefended(model: Model) -> float | None:
    """The step at which the undefended model breaks, worst case."""
    base = model.prices().get("undefended")
    steps = base.worst.get("steps") if base else None
    return steps.value if steps else None


def not_tried(reading: Reading) -> list[str]:
    """What no model of this page was put through, in words."""
    lacking = [missing(model) for model in reading.models]
    return [words for words in lacking[0] if all(words in other for other in lacking)]


# ---------------------------------------------------------------------------------------------------- per model


def sentence(model: Model) -> str:
    """What to remember of a model, in two or three plain sentences."""
    return " ".join(part for part in (_resistance_words(model), *_other_words(model)) if part)


def _resistance_words(model: Model) -> str:
    found, price = model.verdict("resistance"), _undefended(model)
    base = f"; the undefended model breaks at step {number(price)}" if price is not None else ""
    if found.verdict == "met":
        return f"No attack tried breaks {model.name} within {_held(model)} steps{base}."
    if found.verdict == "not met":
        prices = model.prices()
        own = f"{model.name} breaks at step {_broke(model)}"
        return _effect_words(own, base, prices["model"].times if prices else None)
    if found.verdict == "inconclusive":
        return f"Whether {model.name} resists is not settled: {found.sentence.rstrip('.')}."
    return f"The resistance of {model.name} was not measured."


def _effect_words(own: str, base: str, times: Estimate | None) -> str:
    if times is None or times.value is None or times.low is None:
        return f"{own}{base}."
    if times.low > 1:
        return (
            f"The defence delays an attack and does not stop it: {own}{base} "
            f"(typical price {ratio(times.value)} the undefended)."
        )
    if times.high is not None and times.high < 1:
        return f"The model breaks sooner than without the defence: {own}{base}."
    if times.value <= 1.5:
        return f"The defence did nothing measurable against fine-tuning: {own}{base}."
    return f"That the defence does anything against fine-tuning could not be shown: {own}{base}."


def _other_words(model: Model) -> list[str]:
    words = {name: str(model.verdict(name).verdict) for name in CONDITIONS}
    broken, held = words["resistance"] == "not met", words["resistance"] == "met"
    if lines := model.lines():  # in-domain and cross-domain are two lines, as in the paper
        words.pop("generalization")
        words |= lines
    rest = {n: w for n, w in words.items() if n != "resistance"}
    good = [SAID[n, "met"] for n, w in rest.items() if w == "met"]
    bad = [SAID[n, "not met"] for n, w in rest.items() if w == "not met" and not (broken and n in LINES)]
    said = [_join(good) + "."] if good else []
    said += [("but " if good or held else "") + _join(bad) + "."] if bad else []
    for word, lead in (("inconclusive", "Not settled"), ("not measured", "Not measured")):
        names = [SHORT.get(n, n) for n, w in rest.items() if w == word]
        said += [f"{lead}: {', '.join(names)}."] if names else []
    return [s[:1].upper() + s[1:] for s in said]


def _join(clauses: Sequence[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
