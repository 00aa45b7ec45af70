"""The page on attacks names every attack."""

from __future__ import annotations

from pathlib import Path

from titer.attacks import ATTACKS

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"


def test_every_attack_has_a_section() -> None:
    sections = {line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")}
    assert sections - {"Suites", "The adaptive search"} == set(ATTACKS)
