"""No guard: the provider fine-tunes on whatever it is sent. The control that guards are read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from titer.guards.base import DURING, Tuning
from titer.training.losses import sft_rule


@dataclass(frozen=True)
class NoGuard:
    """Minimise the cross-entropy of the user's responses."""

    name: ClassVar[str] = "none"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[str] = "1 f/b"
    source: ClassVar[str] = "control"
    broken_by: ClassVar[str] = "harmful rows among the user's"

    def tune(self, job: Tuning) -> None:
        """Fine-tune on the user's rows."""
        job.session.add_adapter(job.args)
        job.session.train(sft_rule, job.user_batches(), job.args)
