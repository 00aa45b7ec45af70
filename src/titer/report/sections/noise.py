"""The undefended model against itself."""

from __future__ import annotations

from titer.report.cells import Cell, estimate_cell
from titer.report.read import Reading

TITLE = "Noise floor"


def view(reading: Reading) -> list[tuple[str, Cell]]:
    """Noise by probe, each distinct one once: results of one study share theirs."""
    found = dict.fromkeys((probe, e) for model in reading.models for probe, e in model.noise().items())
    return [(probe, estimate_cell(e)) for probe, e in found]
