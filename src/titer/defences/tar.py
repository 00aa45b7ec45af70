"""TAR (tamper-resistant safeguards): map harmful states to noise, then defend at points along a simulated attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, log_softmax

from titer.defences.base import capped, need_extra, need_reference
from titer.defences.parts.inner_loop import Running, simulate
from titer.defences.parts.states import at_response, join, reference_states, response_states
from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.activations import captured
from titer.training.gradients import IGNORE, accumulate, generator, gradient, wide
from titer.training.losses import response_ce, response_logits


@dataclass(frozen=True)
class TAR:
    """Two phases by step number: random mapping for the first `mapping` share of the steps, then tamper resistance.

    Retain data D_r is `pair.harmless` and, where there is one, `pair.retain`.
    mapping     sum over layers of 1 - |cos(h_l(x), r[token])| on the harmful text, r a random table, plus CE on D_r.
    tampering   an attacker takes K = `inner_steps` AdamW steps on `pair.extra`. At every `every`-th of its points w_k
                the gradient of L_TR on the held-out `pair.harmful` is taken and applied to w (first order), with share
                exp(`decay` (k - K)) normalised to sum 1, times `weight`. L_TR is the negative entropy of the outputs
                ("entropy"), or -min(CE, `max_ascent`) ("ce"). Plus `retain_weight` x (CE on D_r + mean over layers of
                |h_l(w) - h_l(reference)| per token).

    The defaults are a short setting of ours. `TAR.paper()` has the paper's K = 64, every 4th, weight 4; there the
    attacker's rate is drawn per step from three and its data from several sets: here it is one rate and one set, and
    the preference-loss variant for refusals is left out.
    """

    name: ClassVar[str] = "tar"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "extra", "reference"})
    passes: ClassVar[str] = "K + K/every + 1 f/b + 1 reference f; 2 f/b while mapping"
    source: ClassVar[str] = "Tamirisa et al., ICLR 2025, arXiv 2408.00761"
    broken_by: ClassVar[str] = "longer warm-up with a cosine schedule, LoRA, other fine-tuning data (2412.07097)"

    inner_steps: int = 8
    every: int = 4
    inner_learning_rate: float = 2e-5
    weight: float = 4.0
    retain_weight: float = 1.0
    decay: float = 0.0625
    mapping: float = 0.2
    objective: Literal["entropy", "ce"] = "entropy"
    max_ascent: float = 20.0

    @staticmethod
    def paper() -> TAR:
        """The paper's horizon: about 80 passes a step."""
        return TAR(inner_steps=64, every=4, inner_learning_rate=2e-5, weight=4.0)

    @property
    def inner_batches(self) -> int:
        """One harmful batch an inner step."""
        return self.inner_steps

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: mapping and retain, or tamper (weighted mean of L_TR), retain and drift."""
        kept = pair.harmless if pair.retain is None else join(pair.harmless, pair.retain)
        if pair.step < self.mapping * pair.steps:
            return self._map(model, pair, kept)
        terms = self._tamper(model, pair) | self._keep(model, need_reference(pair, self.name), kept)
        retain = terms["retain"] + terms["drift"]
        return {"loss": self.weight * terms["tamper"] + self.retain_weight * retain} | terms

    def _map(self, model: nn.Module, pair: Pair, kept: Batch) -> dict[str, float]:
        table = _random_table(model, pair)
        loss = mapping_loss(model, pair.harmful, table)
        loss.backward()
        retain = response_ce(model, kept)
        (self.retain_weight * retain).backward()
        terms = {"mapping": loss.item(), "retain": retain.item()}
        return {"loss": terms["mapping"] + self.retain_weight * terms["retain"]} | terms

    def _tamper(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        points = range(self.every, self.inner_steps + 1, self.every)
        if self.weight == 0 or not points:
            return {"tamper": 0.0}
        share = {k: math.exp(self.decay * (k - self.inner_steps)) for k in points}
        total = sum(share.values())
        sum_, values = Running(), []

        def after(k: int) -> None:
            if k in share:
                grads, value = gradient(model, lambda: self._resist(model, pair.harmful))
                sum_.add(share[k] / total, grads)
                values.append(value * share[k] / total)

        batches = need_extra(pair, self.name, self.inner_steps)
        simulate(model, batches, self.inner_learning_rate, "adamw", after=after)
        accumulate(model, sum_.total, self.weight)
        return {"tamper": sum(values)}

    def _resist(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.objective == "ce":
            return -capped(response_ce(model, batch), self.max_ascent)
        logits, _ = response_logits(model, batch)
        log_p = log_softmax(logits.to(wide(logits.dtype)), -1)
        return (log_p.exp() * log_p).sum(-1).mean()

    def _keep(self, model: nn.Module, reference: nn.Module, kept: Batch) -> dict[str, float]:
        with captured(parts(model).layers) as states:
            loss = response_ce(model, kept)
        before = reference_states(reference, kept, range(len(states)))
        drift = (at_response(states, kept) - before).norm(dim=-1).mean()
        (self.retain_weight * (loss + drift)).backward()
        return {"retain": loss.item(), "drift": drift.item()}


def mapping_loss(model: nn.Module, batch: Batch, table: Tensor) -> Tensor:
    """Sum over decoder layers of the mean of 1 - |cos(h, table[token])| over response tokens."""
    layers = range(len(parts(model).layers))
    targets = table[batch.input_ids[batch.labels != IGNORE]]
    states = response_states(model, batch, layers)
    return (1 - cosine_similarity(states, targets[None], dim=-1).abs()).mean(1).sum()


def _random_table(model: nn.Module, pair: Pair) -> Tensor:
    """One random direction per token, the same at every step."""
    weight = parts(model).embedding.weight
    assert isinstance(weight, Tensor)
    device = pair.harmful.input_ids.device
    return torch.randn(weight.shape, generator=generator(pair.seed, 0, device, "tar"), device=device)
