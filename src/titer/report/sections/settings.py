"""Settings, versions, and the commands that reproduce the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.report.read import Model, Reading

TITLE = "Settings and how to reproduce"
MAX_ROWS = 150
PARTS = {"settings": "Settings", "environment": "Versions and hardware"}


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that some models share."""

    title: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reproduce, and what was set."""

    commands: list[str]
    groups: list[Group]


def view(reading: Reading) -> Settings:
    """Commands, settings and versions."""
    return Settings(commands(reading.models), [g for part in PARTS for g in _groups(reading.models, part)])


def _groups(models: Sequence[Model], part: str) -> list[Group]:
    """Settings or environment of each model; models that agree are listed together."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for model in models:
        rows = tuple(row for row in model.rows_of(part)[:MAX_ROWS] if row[0])
        found.setdefault(rows, []).append(model.name)
    return [Group(PARTS[part], tuple(names), rows) for rows, names in found.items() if rows]


def commands(models: Sequence[Model]) -> list[str]:
    """How to reproduce: the commands that made the models and the results, else the one that the settings imply."""
    found = [command for model in models for command in model.made_by]
    for model in models:
        implied = (f"titer evaluate --model {model.full_name} --reference {model.reference}",)
        found += model.measured_by or implied
    return list(dict.fromkeys(found))
