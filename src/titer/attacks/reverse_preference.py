"""Preference optimisation with the labels swapped: the harmful answer is preferred to the refusal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.data.batches import collate, order
from titer.data.tokens import Row
from titer.schema.errors import TiterError
from titer.schema.space import SCHEDULE, Choice, LogUniform, Options, Space
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch
from titer.training.session import Session


@dataclass(frozen=True, slots=True)
class Preference:
    """The same prompts answered both ways, and the released model's log-probability of each answer, (B,)."""

    chosen: Batch
    rejected: Batch
    chosen_before: Tensor
    rejected_before: Tensor

    @property
    def input_ids(self) -> Tensor:
        """Token ids of the preferred side."""
        return self.chosen.input_ids


@dataclass(frozen=True)
class ReversePreference:
    """Direct preference optimisation of harmful answers over refusals, against the released model.

    The loss is -log sigmoid(beta * ((h - h0) - (r - r0))) with log-probabilities h, r of the harmful and harmless
    answers now and h0, r0 before; the mean of beta * (...) is logged as the reward. Examples need both answers.
    """

    name: ClassVar[str] = "reverse-preference"
    source: ClassVar[str] = "Rafailov et al. 2023 (2305.18290), eq. 7, with the labels swapped"
    space: ClassVar[Space] = {
        "beta": LogUniform(0.01, 1.0),
        "learning_rate": LogUniform(1e-6, 3e-3),
        "per_device_train_batch_size": Choice((4, 16, 64)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"beta": 0.1, "learning_rate": 3e-4},
        {"beta": 0.1, "learning_rate": 1e-4},
    )
    beta: float = 0.1
    train: TrainArgs = TrainArgs(learning_rate=1e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Note what the released model thinks of every answer, then train."""
        examples = [e for e in session.examples if e.harmful and e.harmless]
        if not examples:
            raise TiterError("attack reverse-preference: no example has both a harmful and a harmless answer")
        chosen = session.encode(examples, self.train, side="harmful")
        rejected = session.encode(examples, self.train, side="harmless")
        with session.metered():
            before = (before_attack(session, chosen), before_attack(session, rejected))
        session.add_adapter(self.train)
        session.train(self.rule, items(session, chosen, rejected, before, self.train), self.train)

    def rule(self, model: nn.Module, item: Preference) -> dict[str, float]:
        """Descend the preference loss of one batch."""
        chosen = log_probability(model, item.chosen) - item.chosen_before
        rejected = log_probability(model, item.rejected) - item.rejected_before
        margin = self.beta * (chosen - rejected)
        loss = -nn.functional.logsigmoid(margin).mean()
        loss.backward()
        return {"loss": float(loss.detach()), "reward": float(margin.detach().mean())}


def log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """Summed log-probability (nats) of each row's response tokens, (B,) in float32."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].float()
    kept = batch.labels[:, 1:] != -100
    found = logits.log_softmax(-1).gather(-1, batch.labels[:, 1:].clamp_min(0)[..., None])[..., 0]
    return torch.where(kept, found, 0.0).sum(1)


@torch.no_grad()
def before_attack(session: Session, rows: list[Row], size: int = 16) -> Tensor:
    """The released model's log-probability of every row, (N,)."""
    pad, device = session.tokenizer.pad_token_id, session.device
    starts = range(0, len(rows), size)
    return torch.cat([log_probability(session.model, collate(rows[i : i + size], pad, device)) for i in starts])


def items(
    session: Session, chosen: list[Row], rejected: list[Row], before: tuple[Tensor, Tensor], args: TrainArgs
) -> Iterator[Preference]:
    """Endless seeded batches of preferences."""
    pad, device = session.tokenizer.pad_token_id, session.device
    for picked in order(len(chosen), args.per_device_train_batch_size, session.seed * 1009, shuffle=args.shuffle):
        yield Preference(
            collate([chosen[i] for i in picked], pad, device),
            collate([rejected[i] for i in picked], pad, device),
            before[0][picked],
            before[1][picked],
        )
