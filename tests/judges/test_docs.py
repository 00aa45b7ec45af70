"""The pages on judges and data name everything there is."""

from __future__ import annotations

from pathlib import Path

from titer.data.published import SETS
from titer.judges import JUDGES
from titer.judges.parts.templates import GUARDS

DOCS = Path(__file__).parents[2] / "docs"


def test_every_judge_and_guard_is_documented() -> None:
    page = (DOCS / "judges.md").read_text()
    assert [name for name in (*JUDGES, *GUARDS) if f"`{name}" not in page] == []


def test_every_published_set_is_documented_with_its_hub_id() -> None:
    page = (DOCS / "data.md").read_text()
    assert [name for name in SETS if f"`{name}`" not in page] == []
    assert [form.hub for form in SETS.values() if form.hub.rpartition("/")[2] not in page] == []
