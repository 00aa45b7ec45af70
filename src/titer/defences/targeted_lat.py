"""Targeted latent adversarial training: refuse although the residual stream is pushed towards compliance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from titer.defences.base import draws
from titer.defences.parts.states import join, layer_at
from titer.defences.safety_sft import retain_backward
from titer.models.parts import Parts, parts
from titer.models.weights import frozen
from titer.schema.types import Batch, Pair
from titer.training.activations import shifted_activations
from titer.training.gradients import IGNORE, wide
from titer.training.losses import response_logits


@dataclass(frozen=True)
class TargetedLAT:
    """min_w max_d: refuse under shifts d of the residual stream at prompt tokens (2407.15549).

    Shifts at the embedding and at the layers of relative `depths` (8, 16, 24, 30 of 32), each token's at most `radius`
    long, are found by `inner_steps` of Adam at `inner_learning_rate` with projection, on toward(harmful) +
    away(refusal). The weights then descend `adversarial_weight` x (toward(refusal) + away(harmful)) at the last shifts
    and `retain_weight` x CE on `pair.retain`. toward is CE, away is -log(1 - p) per token. The authors take several
    weight steps for one search; a rule without memory takes one. The defaults are those of the authors' Llama-2 runs;
    `radius` is absolute, so another model's residual stream wants another.
    """

    name: ClassVar[str] = "targeted-lat"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "inner_steps + 1 f/b on both texts together (+ 1 with retain)"
    source: ClassVar[str] = "Sheshadri et al., arXiv 2407.15549"
    broken_by: ClassVar[str] = "made against jailbreaks and relearning, not against long fine-tuning"
    inner_batches: ClassVar[int] = 0

    inner_steps: int = 16
    radius: float = 6.0
    inner_learning_rate: float = 5e-2
    adversarial_weight: float = 0.5
    retain_weight: float = 1.5
    depths: tuple[float, ...] = (8 / 32, 16 / 32, 24 / 32, 30 / 32)

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: attack (what the search reached), toward (refusal), away (harmful), retain."""
        both, rows = join(pair.harmful, pair.harmless), len(pair.harmful.input_ids)
        modules = self._sites(parts(model))
        shifts, reached = self._search(model, modules, both, rows, pair)
        with shifted_activations(modules, [twice(d) for d in shifts]):
            harmful, harmless = _halves(model, both, rows)
            toward, away = harmless[0], harmful[1]
            (self.adversarial_weight * (toward + away)).backward()
        terms = {"attack": reached, "toward": toward.item(), "away": away.item()}
        terms |= retain_backward(model, pair, self.retain_weight)
        loss = self.adversarial_weight * (terms["toward"] + terms["away"])
        return {"loss": loss + self.retain_weight * terms.get("retain", 0.0)} | terms

    def _sites(self, found: Parts) -> list[nn.Module]:
        layers = sorted({layer_at(d, len(found.layers)) for d in self.depths})
        return [found.embedding, *(found.layers[i] for i in layers)]

    def _search(
        self, model: nn.Module, modules: Sequence[nn.Module], both: Batch, rows: int, pair: Pair
    ) -> tuple[list[Tensor], float]:
        """Shifts (B, T, d) at the end of the search, without graph, and the loss of its last step."""
        on_prompt = prompt_mask(both)[:rows, :, None]
        shifts, reached = self._start(model, modules, on_prompt, pair), float("nan")
        adam = torch.optim.Adam(shifts, lr=self.inner_learning_rate)
        with frozen(model):
            for _ in range(self.inner_steps):
                with shifted_activations(modules, [twice(d * on_prompt) for d in shifts]):
                    harmful, harmless = _halves(model, both, rows)
                    loss = harmful[0] + harmless[1]
                    grads = torch.autograd.grad(loss, shifts)
                for d, g in zip(shifts, grads, strict=True):
                    d.grad = g
                adam.step()
                self._project(shifts)
                reached = loss.item()
        return [(d.detach() * on_prompt) for d in shifts], reached

    def _start(self, model: nn.Module, modules: Sequence[nn.Module], mask: Tensor, pair: Pair) -> list[Tensor]:
        weight = parts(model).embedding.weight
        assert isinstance(weight, Tensor)
        random = draws(pair, mask.device, "lat")
        shape = (*mask.shape[:2], weight.shape[1])
        noise = [torch.randn(shape, generator=random, device=mask.device) for _ in modules]
        return [(1e-3 * d).to(wide(weight.dtype)).requires_grad_(True) for d in noise]

    @torch.no_grad()
    def _project(self, shifts: Sequence[Tensor]) -> None:
        for d in shifts:
            d.mul_((self.radius / d.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp(max=1.0))


def prompt_mask(batch: Batch) -> Tensor:
    """Positions before the first response token, (B, T) bool."""
    return (batch.labels != IGNORE).int().cumsum(1) == 0


def twice(shift: Tensor) -> Tensor:
    """The same shift for the harmful and the harmless half of a joined batch."""
    return torch.cat([shift, shift])


def _halves(model: nn.Module, both: Batch, rows: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(toward, away) of the first `rows` rows and of the others, from one forward pass."""
    logits, targets = response_logits(model, both)
    log_p = log_softmax(logits.to(wide(logits.dtype)), -1).gather(1, targets[:, None]).squeeze(1)
    count = int((both.labels[:rows, 1:] != IGNORE).sum())
    return _toward_away(log_p[:count]), _toward_away(log_p[count:])


def _toward_away(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean CE and mean -log(1 - p); p is kept 1e-6 from 1 so that the latter is finite (at most 13.8 nats)."""
    return -log_p.mean(), -torch.log1p(-log_p.exp().clamp(max=1 - 1e-6)).mean()
