"""Edits of the weights that need no training: rounding, pruning, and going along the line through the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from titer.attacks.parts.edits import tuned_after
from titer.models.load import load_beside
from titer.schema.errors import TiterError
from titer.schema.space import TUNE_AFTER, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class MergeWithBase:
    """Move the weights along the line from the base model: theta_base + `scale` (theta - theta_base); maybe train.

    `scale` below 1 weakens what alignment and defence added, below 0 inverts it. `base` names the model they were
    added to, which the attacker has; there is no default, because only the user knows it.
    """

    name: ClassVar[str] = "merge-with-base"
    source: ClassVar[str] = "Ilharco et al. 2022 (2212.04089), task arithmetic"
    models: ClassVar[tuple[str, ...]] = ("base",)
    space: ClassVar[Space] = {"scale": Uniform(-0.5, 0.95), **TUNE_AFTER}
    known: ClassVar[tuple[Options, ...]] = ({"scale": 0.5}, {"scale": 0.0}, {"scale": -0.25})
    base: str = ""
    scale: float = 0.5
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Move every weight; fine-tune if asked."""
        if not self.base:
            raise TiterError("attack merge-with-base: no base model: pass --attack_args.base NAME")
        base = load_beside(self.base, session.model)
        theirs = dict(base.named_parameters())
        with torch.no_grad():
            for name, p in session.model.named_parameters():
                if name not in theirs or theirs[name].shape != p.shape:
                    raise TiterError(f"attack merge-with-base: {self.base} has no matching {name}: not the same model")
                p.copy_(torch.lerp(theirs[name], p, self.scale))
        tuned_after(session, self.then_sft, self.train)
