"""The second threat model as a run: a provider fine-tunes on a user's rows, some of them harmful, behind a guard.

To the harness it is an attack like any other: it trains in a session that meters and grades it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from titer.data.select import select
from titer.guards import Guarded, configure_guard
from titer.guards.base import Tuning
from titer.models.load import load_beside
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import FINE_TUNE, Selection, TrainArgs
from titer.schema.types import Example
from titer.training.session import Session

TUNE = "titer.runs.provider:ProviderTune"  # what an `AttackRun` names


@dataclass(frozen=True)
class ProviderTune:
    """Fine-tune on `n` rows of which a share `ratio` is harmful, by a guard's rule, then apply its repairs.

    The session's examples are the harmful rows, its retained ones the harmless task. `safety` is what the provider
    holds of its own; `base` names the model before its alignment. Only the end is graded beside the start.
    """

    name: ClassVar[str] = "provider-tune"
    source: ClassVar[str] = "Huang et al. 2024 (2409.18169), fine-tuning as a service"
    guard: str = "none"
    guard_args: Mapping[str, Any] = field(default_factory=dict)
    ratio: float = 0.1
    n: int = 200
    safety: Selection | None = None
    base: str = ""
    base_fingerprint: str = ""
    train: TrainArgs = FINE_TUNE
    test_template: None = None

    def run(self, session: Session) -> None:
        """Draw the user's rows by the seed, tune, repair."""
        guarded = configure_guard(self.guard, self.guard_args)
        user = mix(session.retain, session.examples, self.ratio, self.n, session.seed)
        guarded.tune(self._job(session, user, guarded))
        session.step = max(session.step, 1)  # the end is graded even where nothing was trained

    def _job(self, session: Session, user: Sequence[Example], guarded: Guarded) -> Tuning:
        full_repair = guarded.repairs and self.train.lora_r == 0
        steps = min(self.train.max_steps or session.max_steps, session.max_steps)  # a tune cut short is not repaired
        return Tuning(
            session,
            user,
            select(self.safety) if self.safety else (),
            replace(self.train, max_steps=steps),
            before=snapshot(session.model) if full_repair else None,
            base=self._base(session) if "base" in guarded.needs else None,
        )

    def _base(self, session: Session) -> Any:
        if not self.base:
            raise TiterError(f"guard {self.guard}: needs the model before its alignment: pass --base_model")
        return load_beside(self.base, session.model)


def mix(task: Sequence[Example], harmful: Sequence[Example], ratio: float, n: int, seed: int) -> list[Example]:
    """`n` rows drawn by the seed, a share `ratio` of them harmful; where either kind runs short, both shrink alike."""
    if not 0 <= ratio <= 1:
        raise TiterError(f"poison ratio must lie between 0 and 1, not {ratio}")
    room = [len(rows) / share for rows, share in ((harmful, ratio), (task, 1 - ratio)) if share > 0]
    total = min(n, *room)
    bad = round(total * ratio)
    draw = random.Random(f"provider/{seed}")
    rows = draw.sample(list(harmful), bad) + draw.sample(list(task), int(total) - bad)
    if not rows:
        raise TiterError(f"fine-tune: no rows at poison ratio {ratio}: the data has too few")
    return rows
