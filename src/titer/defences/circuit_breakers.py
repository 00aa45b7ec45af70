"""Circuit breakers (representation rerouting): turn harmful states away from where they pointed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from titer.defences.base import need_reference
from titer.defences.parts.states import at_tokens, counted, hidden_states, kept_rows, state_at
from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.gradients import own_grad, trainable


@dataclass(frozen=True)
class CircuitBreakers:
    """c_s ReLU(cos(h(harmful), h_ref)) + c_r |h(kept) - h_ref|, c_s = a (1 - t/2T), c_r = a t/2T (2406.04313).

    t = `pair.step` + 1 of T = `pair.steps` optimiser steps. Both terms are means over tokens and states. h are the
    hidden states (0 the embedding, i what block i - 1 puts out); those at relative `depths` (10 and 20 of 32) are
    rerouted. What is kept is the harmless batch and, where there is one, `pair.retain`. At the start both terms have
    no gradient (cos = 1, no gap), so it takes steps and a rate that rounding can start from.

    The default is the authors' code, which made the paper's numbers: prompt tokens count too, all states are kept, and
    only blocks up to the deepest rerouted state (0 to 20 of 32) are trained. Deviations: the code cuts the model after
    block 20 and keeps the states up to there, here those of the whole model; its mean divides by padding too, here
    padding never counts; it drops the prompt of half its rows. `as_published=False` counts response tokens, keeps the
    rerouted states alone, and trains every block.
    """

    name: ClassVar[str] = "circuit-breakers"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "reference"})
    passes: ClassVar[str] = "2 f/b + 2 reference f"
    source: ClassVar[str] = "Zou et al., arXiv 2406.04313"
    alone: ClassVar[str] = "its weights move from one half of its own loss to the other"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "made against jailbreaks, not against fine-tuning"
    inner_batches: ClassVar[int] = 0

    alpha: float = 10.0
    depths: tuple[float, ...] = (10 / 32, 20 / 32)
    as_published: bool = True

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: reroute and retain, before their weights."""
        reference, blocks = need_reference(pair, self.name), parts(model).layers
        at = sorted({state_at(d, len(blocks)) for d in self.depths})
        trained = blocks[: at[-1] + 1] if self.as_published else blocks
        late = (pair.step + 1) / (2 * pair.steps)
        with own_grad(self._left_alone(model, trained)):
            reroute = self._reroute(model, reference, pair.harmful, at)
            (self.alpha * (1 - late) * reroute).backward()
            kept = kept_rows(pair)
            retain = self._retain(model, reference, kept, at)
            (self.alpha * late * retain).backward()
        terms = {"reroute": reroute.item(), "retain": retain.item()}
        return {"loss": self.alpha * ((1 - late) * terms["reroute"] + late * terms["retain"])} | terms

    def _left_alone(self, model: nn.Module, trained: Sequence[nn.Module]) -> list[nn.Parameter]:
        """Parameters whose gradient is dropped: those outside the trained blocks."""
        if not self.as_published:
            return []
        inside = {id(p) for block in trained for p in block.parameters()}
        return [p for p in trainable(model).values() if id(p) not in inside]

    def _reroute(self, model: nn.Module, reference: nn.Module, batch: Batch, at: list[int]) -> Tensor:
        now, before = self._look(model, reference, batch, at)
        return cosine_similarity(now, before, dim=-1).relu().mean()

    def _retain(self, model: nn.Module, reference: nn.Module, batch: Batch, at: list[int]) -> Tensor:
        every = list(range(len(parts(model).layers) + 1))
        now, before = self._look(model, reference, batch, every if self.as_published else at)
        gap: Tensor = (now - before).norm(dim=-1)
        return gap.mean()

    def _look(self, model: nn.Module, reference: nn.Module, batch: Batch, at: list[int]) -> tuple[Tensor, Tensor]:
        """The states `at` of both models at the tokens that count, (len(at), N, d)."""
        tokens = counted(batch, everything=self.as_published)
        states = hidden_states(model, batch)
        with torch.no_grad():
            before = hidden_states(reference, batch)
        return at_tokens([states[i] for i in at], tokens), at_tokens([before[i] for i in at], tokens)
