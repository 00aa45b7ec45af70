"""Activation patching: a module's output in one model is replaced by what the same module says in another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from titer.mechanism.states import outputs, predicting, row_means
from titer.schema.types import Batch
from titer.training.activations import shifted_activations
from titer.training.gradients import wide
from titer.training.losses import answer_positions, response_logits

Modules = Sequence[nn.Module]


def answer_logp(model: nn.Module, batch: Batch) -> Tensor:
    """Mean log-probability (nats a token) of each row's answer, (B,)."""
    logits, targets = response_logits(model, batch)
    said = torch.log_softmax(logits.to(wide(logits.dtype)), -1).gather(1, targets[:, None])[:, 0]
    return row_means(said, answer_positions(batch.labels)[0], len(batch.labels))


@torch.no_grad()
def patched(
    receiver: nn.Module, donor: nn.Module, modules: tuple[Modules, Modules], batch: Batch
) -> tuple[Tensor, Tensor]:
    """The receiver's log-probability of the answers (B,), and with each module patched in turn, (modules, B).

    `modules` are the receiver's and the donor's, in the same order. Patched are the positions that predict a token of
    the answer; the prompt's states stay the receiver's. Hidden states move by the difference of the two models, which
    is the donor's state up to rounding, since nothing before the patched module has changed.
    """
    own, given = outputs(receiver, modules[0], batch), outputs(donor, modules[1], batch)
    where = predicting(batch)[..., None]
    plain = answer_logp(receiver, batch)
    moved = []
    for module, mine, theirs in zip(modules[0], own, given, strict=True):
        with shifted_activations([module], [(theirs - mine) * where]):
            moved.append(answer_logp(receiver, batch))
    return plain, torch.stack(moved)
