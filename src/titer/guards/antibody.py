"""Antibody, its second stage: trust a row the more, the less likely the model is to refuse it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.data.batches import collate, order, pairs
from titer.guards.base import DURING, Tuning, row_losses
from titer.guards.parts.antibody_alignment import AntibodyAlignment
from titer.schema.types import Batch
from titer.training.gradients import IGNORE


@dataclass(frozen=True, slots=True)
class Answered:
    """The user's rows, and the same prompts answered by a refusal."""

    user: Batch
    refused: Batch

    @property
    def input_ids(self) -> Tensor:
        """Token ids of the user's rows."""
        return self.user.input_ids


@dataclass(frozen=True)
class Antibody:
    """sum_i w_i n_i NLL_i / sum_i w_i n_i, w = softmax over the batch of (NLL(refusal | x_i) - NLL_i) / `temperature`.

    NLL_i is the mean over the n_i tokens of answer y_i to x_i, that of the refusal likewise; the weights carry no
    gradient, and each prompt's refusal is one of the provider's. Weighing answers by their length is the authors'
    code; `as_published=False` takes the paper's sum_i w_i NLL_i. Before it, `alignment_steps` of the first stage
    (`alignment`; 0 leaves it out) on the provider's pairs, with the tune's own adapter when it has one.
    """

    name: ClassVar[str] = "antibody"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety", "harmful"})
    passes: ClassVar[str] = "1 f/b + 1 f; once: alignment_steps x 4 f/b"
    source: ClassVar[str] = "Nguyen et al., ICLR 2026, arXiv 2603.00498"
    broken_by: ClassVar[str] = "no independent test known to us"

    temperature: float = 1.0
    alignment_steps: int = 40
    alignment_learning_rate: float = 5e-4
    alignment: AntibodyAlignment = field(default=AntibodyAlignment())
    as_published: bool = True

    def tune(self, job: Tuning) -> None:
        """The two stages."""
        job.session.add_adapter(job.args)
        self.align(job)
        job.session.train(self.backward, self.items(job), job.args)

    def align(self, job: Tuning) -> None:
        """The first stage, where it is asked for."""
        if self.alignment_steps == 0:
            return
        job.safety_rows("harmful"), job.safety_rows("harmless")  # refuses data without either
        session = job.session
        args = replace(job.args, learning_rate=self.alignment_learning_rate, max_steps=self.alignment_steps)
        items = pairs(job.safety, [], session.tokenizer, args, seed=session.seed, device=session.device)
        job.prepare(self.alignment.backward, items, args)

    def items(self, job: Tuning) -> Iterator[Answered]:
        """Endless seeded batches of the user's rows, each prompt also with a refusal drawn by the seed."""
        session, args = job.session, job.args
        draw = random.Random(f"antibody/{session.seed}")
        refusals = sorted({e.harmless for e in job.safety if e.harmless})
        refused = [replace(e, harmful="", harmless=draw.choice(refusals)) for e in job.user]
        rows, no = job.user_rows(), session.encode(refused, args)
        pad, size = session.tokenizer.pad_token_id, args.per_device_train_batch_size
        for picked in order(len(rows), size, session.seed * 1009, shuffle=args.shuffle):
            yield Answered(*(collate([side[i] for i in picked], pad, session.device) for side in (rows, no)))

    def backward(self, model: nn.Module, item: Answered) -> dict[str, float]:
        """Terms: loss (weighted), ce (plain mean over rows), largest (the largest weight)."""
        losses = row_losses(model, item.user)
        with torch.no_grad():
            weights = torch.softmax((row_losses(model, item.refused) - losses) / self.temperature, 0)
        shares = self._shares(weights, item.user) if self.as_published else weights
        loss = (shares * losses).sum()
        loss.backward()
        return {"loss": loss.item(), "ce": losses.mean().item(), "largest": weights.max().item()}

    def _shares(self, weights: Tensor, batch: Batch) -> Tensor:
        """What each row's mean counts when a weight holds for every token of its answer."""
        tokens = weights * (batch.labels[:, 1:] != IGNORE).sum(1)
        return tokens / tokens.sum()
