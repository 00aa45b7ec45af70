"""Edits of the weights that need no training: rounding, pruning, and going along the line through the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers.pytorch_utils import Conv1D

from titer.attacks.parts.edits import matrices, rounded, tuned_after
from titer.schema.errors import TiterError
from titer.schema.space import TUNE_AFTER, Choice, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.session import Session


@dataclass(frozen=True)
class Quantise:
    """Round the decoder's matrices to `bits` bits, symmetrically, one scale per output channel; then maybe train.

    The rounded values stay in the model's own dtype, as after loading a quantised checkpoint and dequantising it.
    """

    name: ClassVar[str] = "quantise"
    source: ClassVar[str] = "Zhang et al. 2024 (2410.16454)"
    space: ClassVar[Space] = {"bits": Choice((3, 4, 8)), **TUNE_AFTER}
    known: ClassVar[tuple[Options, ...]] = ({"bits": 4}, {"bits": 8})
    bits: int = 4
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Round every matrix; fine-tune if asked."""
        if not 2 <= self.bits <= 16:
            raise TiterError(f"attack quantise: bits must lie between 2 and 16, not {self.bits}")
        with torch.no_grad():
            for module in matrices(session.model):
                weight: Any = module.weight
                weight.copy_(rounded(weight, self.bits, channel=1 if isinstance(module, Conv1D) else 0))
        tuned_after(session, self.then_sft, self.train)
