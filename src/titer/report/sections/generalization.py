"""Defence data against attack data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from titer.report.cells import Cell, Rows, estimate_cell, number
from titer.report.read import Audit, Crossing, Model, Reading
from titer.schema.types import Estimate

TITLE = "Generalization"
KINDS = {"unseen": "unseen samples", "withheld": "withheld categories", "cross": "another domain"}


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of attack data against one model: how it was defended, the verdict, and the numbers behind it."""

    name: str
    verdict: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Generalization:
    """Models against each other, the audits of their data, and each by itself."""

    grid: list[Rows]
    audits: list[tuple[str, str]]
    matrices: list[tuple[str, list[Row]]]


def view(reading: Reading) -> Generalization | None:
    """What happens when the attacker trains on data that the defence never saw."""
    matrices = [(m.name, [_row(row) for row in rows]) for m in reading.models if (rows := m.crossings())]
    checked = audits(reading.models)
    return Generalization(grid(reading.models), checked, matrices) if matrices or checked else None


def _row(row: Crossing) -> Row:
    numbers = (row.steps, row.harm, row.undefended_harm, row.ratio)
    return Row(f"{row.defence_data} → {row.attack_data}", row.verdict, tuple(map(estimate_cell, numbers)))


def grid(models: Sequence[Model]) -> list[Rows]:
    """Models defended on different data: one row a model, one column a set of categories attacked; then by kind.

    Empty unless at least two of the models were defended on different categories.
    """
    found = [(m, {attacked(m, row): row for row in m.crossings()}) for m in models]
    found = [(m, cells) for m, cells in found if cells]
    if len({m.data("defended") for m, _ in found}) < 2:
        return []
    columns = list(dict.fromkeys(name for _, cells in found for name in cells))
    body = [(_defended(m), tuple(_crossed(cells.get(c)) for c in columns)) for m, cells in found]
    plain = {c: row for _, cells in found for c, row in cells.items()}
    body.append(("undefended", tuple(_harm(plain[c].undefended_harm) for c in columns)))
    return [Rows("Steps to breach, by attack data", ("Defence data", *columns), tuple(body)), _by_kind(models)]


def attacked(model: Model, row: Crossing) -> str:
    """The categories behind a row of a model's matrix, in words."""
    name = row.attack_data.partition(":")[2]
    role = row.kind if row.kind in ("withheld", "cross") else "defended"
    return name or ", ".join(model.data(role) or (row.kind,))


def _defended(model: Model) -> str:
    return f"{model.name}, defended on {', '.join(model.data('defended'))}"


def _crossed(row: Crossing | None) -> Cell:
    """One cell of the grid: steps to breach, what the data is to the defence, and the highest harm."""
    if row is None:
        return Cell("–", spoken="not measured")
    cell, harm = estimate_cell(row.steps), estimate_cell(row.harm)
    return replace(cell, sample=f"{row.kind} · harm {harm.value} {harm.interval} · {cell.sample}")


def _harm(found: Estimate | None) -> Cell:
    cell = estimate_cell(found)
    return replace(cell, value=f"harm {cell.value}")


def _by_kind(models: Sequence[Model]) -> Rows:
    """The verdict for each kind of attack data, model by model."""
    found = [m.by_kind() for m in models]
    rows = tuple((words, tuple(_verdict(one.get(kind)) for one in found)) for kind, words in KINDS.items())
    return Rows("By kind of attack data", ("Attack data", *(m.name for m in models)), rows)


def _verdict(found: tuple[str, Estimate | None] | None) -> Cell:
    if found is None:
        return Cell("not measured")
    cell = estimate_cell(found[1])
    return replace(cell, value=found[0], spoken="", interval=f"{cell.value} {cell.interval}")


def audits(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Per model: that what is called withheld was absent from the defence's data, and what proves it."""
    return [(m.name, _audit(found)) for m in models if (found := m.audit())]


def _audit(found: Audit) -> str:
    sizes = ", ".join(f"{name} {number(size)}" for name, size in found.sizes.items())
    saw = {
        "these": f"The defence's own record holds the same prompts (digest {found.digest}).",
        "others": "The defence's own record names OTHER prompts than these: withheld is not shown for this model.",
    }.get(found.saw, "Which prompts the defence saw is not recorded.")
    return f"{found.exact} exact and {found.near} near duplicates between the roles ({sizes}). {saw}"
