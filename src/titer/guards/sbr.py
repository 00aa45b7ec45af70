"""SBR, the safety anchor: a few harmful prompts must end in the hidden state they had before the tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from titer.data.batches import collate
from titer.guards.base import DURING, Tuning, prompts_only
from titer.models.parts import parts
from titer.schema.types import Batch
from titer.training.activations import captured
from titer.training.losses import forward, response_ce


@dataclass(frozen=True)
class SBR:
    """CE + `weight` x MSE(h(anchor), h_before(anchor)), h the last prompt token's state that the head reads.

    The anchors are the provider's first `anchors` prompts (1 to 8 in the paper), the same at every step; where they
    stood before the tune is computed once.
    """

    name: ClassVar[str] = "sbr"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety", "reference"})
    passes: ClassVar[str] = "2 f/b, the second on the anchors; once: 1 f on them"
    source: ClassVar[str] = "Lu et al., ICML 2026, arXiv 2605.05995"
    broken_by: ClassVar[str] = "no independent test known to us"

    weight: float = 50.0
    anchors: int = 8

    def tune(self, job: Tuning) -> None:
        """Note where the anchors stand, then tune with them held."""
        session = job.session
        chosen = prompts_only(job.safety_rows()[: self.anchors])
        batch = collate(chosen, session.tokenizer.pad_token_id, session.device)
        with session.metered(), torch.no_grad():
            before = last_states(session.model, batch)
        session.add_adapter(job.args)
        session.train(lambda model, b: self.backward(model, b, batch, before), job.user_batches(), job.args)

    def backward(self, model: nn.Module, user: Batch, anchors: Batch, before: Tensor) -> dict[str, float]:
        """Terms: ce, anchor (before its weight)."""
        loss = response_ce(model, user)
        loss.backward()
        moved = mse_loss(last_states(model, anchors), before)
        (self.weight * moved).backward()
        return {"loss": loss.item() + self.weight * moved.item(), "ce": loss.item(), "anchor": moved.item()}


def last_states(model: nn.Module, batch: Batch) -> Tensor:
    """What the head reads at the last token of each row, (B, d)."""
    with captured([parts(model).final_norm]) as states:
        forward(model, batch)
    last = batch.attention_mask.sum(1) - 1
    return states[0][torch.arange(len(last), device=last.device), last]
