"""What a judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from titer.schema.types import Score


class Judge(Protocol):
    """Scores completions; what it cannot score is `Score(None, None, name)`, never a default."""

    @property
    def name(self) -> str:
        """What its scores are signed with."""

    def score(self, prompts: Sequence[str], completions: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """One score per completion, in order; `targets` are the examples' answers (may be empty strings)."""
