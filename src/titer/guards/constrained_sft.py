"""Constrained SFT: the first tokens of an answer may move little from where they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from titer.data.batches import collate, order
from titer.data.tokens import Row
from titer.guards.base import DURING, Tuning, in_chunks, rows_of, token_log_probs
from titer.schema.types import Batch


@dataclass(frozen=True, slots=True)
class Held:
    """A batch and the log-probability its response tokens had before the tune, (N,)."""

    batch: Batch
    before: Tensor

    @property
    def input_ids(self) -> Tensor:
        """Token ids of the batch."""
        return self.batch.input_ids


@dataclass(frozen=True)
class ConstrainedSFT:
    """Mean over response tokens of -(2/beta_t) log sigmoid(beta_t (log p(y_t) - log p_before(y_t))) (eq. 3).

    Its gradient is that of CE with each token weighted by 2 (1 - sigmoid(beta_t difference)): 1 at the start, falling
    as the token gets likelier, sooner the larger beta_t. `beta_first` holds for token 1, `beta_early` for tokens 2 to
    `early`, `beta_late` for the rest. The log-probabilities before the tune are computed once per row. The lower bound
    of 1e-3 that the authors' code puts on the weights is left out.
    """

    name: ClassVar[str] = "constrained-sft"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    passes: ClassVar[str] = "1 f/b; once: 1 f on every row"
    source: ClassVar[str] = "Qi et al., ICLR 2025, arXiv 2406.05946"
    broken_by: ClassVar[str] = "fine-tuning to refuse first and answer then (2502.19537)"

    beta_first: float = 0.5
    beta_early: float = 2.0
    beta_late: float = 0.1
    early: int = 5

    def tune(self, job: Tuning) -> None:
        """Note how likely every token is, then tune under the constraint."""
        rows = job.user_rows()
        before = self.before(job, rows)
        job.session.add_adapter(job.args)
        job.session.train(self.backward, self.items(job, rows, before), job.args)

    def before(self, job: Tuning, rows: list[Row]) -> list[Tensor]:
        """Each row's response tokens' log-probabilities under the model as it came."""
        session, found = job.session, list[Tensor]()
        with session.metered(), torch.no_grad():
            for batch in in_chunks(rows, session.tokenizer.pad_token_id, session.device):
                counts = torch.bincount(rows_of(batch), minlength=len(batch.labels)).tolist()
                found += token_log_probs(session.model, batch).split(counts)
        return found

    def items(self, job: Tuning, rows: list[Row], before: list[Tensor]) -> Iterator[Held]:
        """Endless seeded batches with what belongs to them."""
        session, args = job.session, job.args
        size, seed = args.per_device_train_batch_size, session.seed * 1009
        for picked in order(len(rows), size, seed, shuffle=args.shuffle):
            batch = collate([rows[i] for i in picked], session.tokenizer.pad_token_id, session.device)
            yield Held(batch, torch.cat([before[i] for i in picked]))

    def backward(self, model: nn.Module, item: Held) -> dict[str, float]:
        """Terms: loss, and the mean weight its gradient gives a token relative to CE."""
        beta = self.betas(item.batch)
        scaled = beta * (token_log_probs(model, item.batch) - item.before)
        loss = (2 / beta * softplus(-scaled)).mean()
        loss.backward()
        return {"loss": loss.item(), "weight": float(2 * torch.sigmoid(-scaled.detach()).mean())}

    def betas(self, batch: Batch) -> Tensor:
        """beta_t of every response token, (N,)."""
        kept = batch.labels[:, 1:] != -100
        place = kept.cumsum(1)[kept]
        late = torch.full(place.shape, self.beta_late, dtype=torch.float64, device=place.device)
        early = torch.where(place <= self.early, self.beta_early, late)
        return torch.where(place == 1, self.beta_first, early)
