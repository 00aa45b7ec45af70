"""The attacker knows where the defence sits: its layers are frozen, or drawn anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from titer.attacks.parts.mixtures import weighted_rule, with_retain
from titer.models.parts import parts, unwrap
from titer.schema.space import RATE, Choice, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class KnownLayers:
    """Freeze or re-initialise the decoder layers from `start` to `start + span` (shares of the depth), then train.

    `only` narrows it to the MLPs or the attentions of those layers. Re-initialising loses ability, which
    `retain_weight` times the benign loss brings back; the new weights are drawn from the session's seed.
    """

    name: ClassVar[str] = "known-layers"
    source: ClassVar[str] = "design: the attacker is told the defence"
    space: ClassVar[Space] = {
        "how": Choice(("freeze", "reinitialise")),
        "start": Choice((0.0, 0.25, 0.5, 0.75)),
        "span": Choice((0.25, 0.5)),
        "only": Choice(("all", "mlp", "attention")),
        "retain_weight": Uniform(0.0, 1.0),
        "learning_rate": RATE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"how": "freeze", "start": 0.0, "span": 0.5, "learning_rate": 1e-3},
        {"how": "freeze", "start": 0.5, "span": 0.5, "learning_rate": 1e-3},
    )
    how: Literal["freeze", "reinitialise"] = "freeze"
    start: float = 0.0
    span: float = 0.5
    only: Literal["all", "mlp", "attention"] = "all"
    retain_weight: float = 0.0
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Freeze or redraw, then train what may move."""
        found = self.modules(session.model)
        if self.how == "reinitialise":
            redraw(session.model, found, session.seed)
            session.edited()
        session.add_adapter(self.train)
        if self.how == "freeze":
            for module in found:
                module.requires_grad_(False)
        session.train(weighted_rule, with_retain(session, self.train, 1.0, self.retain_weight), self.train)

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules meant: at least one layer's, at most those there are."""
        p = parts(model)
        depth = len(p.layers)
        first = min(int(self.start * depth), depth - 1)
        last = min(max(first + 1, round((self.start + self.span) * depth)), depth)
        chosen = {"all": p.layers, "mlp": p.mlps, "attention": p.attentions}[self.only]
        return list(chosen[first:last])


def redraw(model: nn.Module, modules: list[nn.Module], seed: int) -> None:
    """Give the linear layers inside `modules` fresh weights, as the model's own class draws them."""
    lm = unwrap(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in modules:
            for p in module.parameters():
                if p.dim() > 1:
                    p.copy_(torch.randn(p.shape) * lm.config.get_text_config().initializer_range)
