"""CRL (triplet): pull harmful representations into one cluster that is far from every benign one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from titer.defences.base import need_reference
from titer.defences.parts.states import at_response, hidden_states, kept_rows, kl, observed, state_at
from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.losses import response_logits


@dataclass(frozen=True)
class Triplet:
    """`benign_weight` x B + `harmful_weight` x H + `kl_weight` x KL(reference || model) on the benign tokens.

    With d = 1 - cos, m the batch's mean harmful state per layer, primes for the trained model and means over response
    tokens and the hidden states from relative `depth` on, the normed last one left out (states 20 to 31 of 32
    blocks, state i being what block i - 1 puts out):
    B = relu(d(h_b, h_b') - d(h_b', m') + `benign_margin`),  H = relu(d(h_h', m') - d(h_h', h_h) + `harmful_margin`).
    Benign is the harmless batch and, where there is one, `pair.retain`. The re-implementation takes KL over prompt
    tokens too, here it is over the predictions of response tokens. The paper's own code was not read.
    """

    name: ClassVar[str] = "triplet"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "reference"})
    passes: ClassVar[str] = "2 f/b + 2 reference f"
    source: ClassVar[str] = "Simko et al., 2025, as re-implemented by TamperBench (arXiv 2602.06911)"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "searched fine-tuning attacks (2602.06911)"
    inner_batches: ClassVar[int] = 0

    benign_weight: float = 0.5
    harmful_weight: float = 0.4
    kl_weight: float = 0.9
    benign_margin: float = 0.3
    harmful_margin: float = 0.5
    depth: float = 20 / 32

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: benign, harmful, kl, before their weights."""
        reference = need_reference(pair, self.name)
        benign = kept_rows(pair)
        count = len(parts(model).layers)
        first = min(state_at(self.depth, count), max(count - 1, 1))
        good, logits = _look(model, benign, first)
        harm = at_response(_deep(hidden_states(model, pair.harmful), first), pair.harmful)
        with torch.no_grad():
            good_before, teacher = _look(reference, benign, first)
            harm_before = at_response(_deep(hidden_states(reference, pair.harmful), first), pair.harmful)
        centre = harm.mean(1, keepdim=True)
        pull = (_distance(good_before, good) - _distance(good, centre) + self.benign_margin).relu().mean()
        push = (_distance(harm, centre) - _distance(harm, harm_before) + self.harmful_margin).relu().mean()
        divergence = kl(teacher, logits)
        loss = self.benign_weight * pull + self.harmful_weight * push + self.kl_weight * divergence
        loss.backward()
        return {"loss": loss.item(), "benign": pull.item(), "harmful": push.item(), "kl": divergence.item()}


def _look(model: nn.Module, batch: Batch, first: int) -> tuple[Tensor, Tensor]:
    """States (L, N, d) at response tokens and the logits (N, V) that predict them, from one pass."""
    states, logits = observed(model, lambda: response_logits(model, batch)[0])
    return at_response(_deep(states, first), batch), logits


def _deep(states: list[Tensor], first: int) -> list[Tensor]:
    """The states from `first` on; of a single block, what it puts out."""
    return states[first:-1] or states[-1:]


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - cosine_similarity(a, b, dim=-1)
