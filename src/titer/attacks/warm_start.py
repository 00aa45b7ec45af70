"""Refusal ablation: find the direction that makes the model refuse and write it out of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from titer.attacks.parts import directions as d
from titer.attacks.parts.refusal_directions import Prompts, split
from titer.attacks.refusal_ablation import RefusalAblation
from titer.models.load import load_beside
from titer.schema.space import RATE, Choice, LogUniform, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.meter import Meter
from titer.training.session import Session


@dataclass(frozen=True)
class WarmStart:
    """Fine-tune from where the reference model's own refusal direction has been removed.

    `reference` names the undefended model the defence started from (empty: the attacked model itself); its directions
    are looked up there, where no defence has hidden them, and chosen on the attacked model as `refusal-ablation` does,
    but for the induce test: a gap of the reference need not induce anything in another model.
    """

    name: ClassVar[str] = "warm-start"
    source: ClassVar[str] = "design: refusal ablation (2406.11717) as the start of fine-tuning"
    models: ClassVar[tuple[str, ...]] = ("reference",)
    space: ClassVar[Space] = {
        "scope": Choice(("single", "per-layer")),
        "strength": Uniform(0.5, 2.0),
        "kl_bound": LogUniform(0.03, 3.0),
        "learning_rate": RATE,
    }
    known: ClassVar[tuple[Options, ...]] = ({"scope": "single", "strength": 1.0, "learning_rate": 1e-3},)
    reference: str = ""
    scope: Literal["single", "per-layer"] = "single"
    strength: float = 1.0
    kl_bound: float = 0.3
    n: int = 128
    held_out: float = 0.2
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Find in the reference, choose and remove in the attacked model, fine-tune."""
        prompts = split(session, self.n, self.held_out, self.train)
        ablation = RefusalAblation(self.scope, self.strength, self.kl_bound, induce=False)
        with session.metered():
            found = self.found(session.model, session.meter, prompts)
            chosen = ablation.choose(session.model, found, prompts)
        if chosen:
            d.write_out(session.model, chosen, self.strength)
        session.edited()
        session.fine_tune(self.train, session.examples)

    def found(self, model: Any, meter: Meter, prompts: Prompts) -> Tensor:
        """The reference's gaps, charged to the attacker; its own when no reference is named."""
        if not self.reference:
            return d.gaps(model, prompts.harmful, prompts.benign, prompts.tokens)
        reference = load_beside(self.reference, model)
        with meter.running(reference):
            return d.gaps(reference, prompts.harmful, prompts.benign, prompts.tokens)
