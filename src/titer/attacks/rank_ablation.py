"""Refusal in more than one direction: removed round by round, each found anew on the model as it is then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.attacks.parts import directions as d
from titer.attacks.parts.edits import tuned_after
from titer.attacks.parts.refusal_directions import Prompts, split
from titer.data.tokens import Row
from titer.models.parts import parts
from titer.models.weights import restore, snapshot
from titer.schema.space import TUNE_AFTER, Choice, LogUniform, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.activations import captured
from titer.training.session import Session


@dataclass(frozen=True)
class RankAblation:
    """Remove up to `k` directions from every layer's writers; nothing is trained unless `then_sft`.

    A round finds, on the weights as the last round left them, the difference of the mean states of harmful and benign
    prompts behind each layer, takes its components along the `spare` largest principal components of the benign
    states out (what the model's ability uses most), and removes what is left with a weight that falls from `strength`
    at `peak` (a share of the depth) to 0 at `width` shares away. A round that would move the next-token distribution
    of held-out benign prompts by more than `kl_bound` nats from the released model's is undone and is the last.

    Source: difference of means and KL bound after Arditi et al.; the weights' shape after Heretic (its minimal
    weight is 0 here and one shape serves attention and MLP); re-estimation and spared components are ours.
    """

    name: ClassVar[str] = "rank-ablation"
    source: ClassVar[str] = "after Arditi et al. 2024 (2406.11717) and Heretic (p-e-w/heretic); rounds our own"
    space: ClassVar[Space] = {
        "k": Choice((1, 2, 4, 8, 16)),
        "spare": Choice((0, 1, 4, 8)),
        "strength": Uniform(0.5, 2.0),
        "peak": Uniform(0.0, 1.0),
        "width": LogUniform(0.2, 4.0),
        "kl_bound": LogUniform(0.03, 3.0),
        **TUNE_AFTER,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"k": 4, "kl_bound": 1.0},
        {"k": 16, "kl_bound": 1.0},
        {"k": 4, "spare": 4, "kl_bound": 1.0},
        {"k": 4, "kl_bound": 1.0, "then_sft": True, "learning_rate": 1e-3},
    )
    k: int = 4
    spare: int = 0
    strength: float = 1.0
    peak: float = 0.6
    width: float = 4.0
    kl_bound: float = 0.3
    n: int = 128
    held_out: float = 0.2
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Round after round within the bound; then fine-tune if asked."""
        prompts = split(session, self.n, self.held_out, self.train)
        with session.metered():
            before = d.next_tokens(session.model, prompts.held_benign, prompts.tokens)
        for _ in range(self.k):
            with session.metered():
                kept = self.round(session.model, prompts, before)
            if not kept:
                break
        tuned_after(session, self.then_sft, self.train)

    def round(self, model: nn.Module, prompts: Prompts, before: Tensor) -> bool:
        """Remove one direction per layer, unless that breaks the bound; whether it was removed."""
        found = surgical(model, prompts, self.spare)
        saved = snapshot(model)
        for layer, (weight, r) in enumerate(zip(self.weights(len(found)), found, strict=True)):
            d.write_out(model, {layer: r}, weight)
        moved = d.divergence(before, d.next_tokens(model, prompts.held_benign, prompts.tokens))
        if moved <= self.kl_bound:
            return True
        restore(model, saved)
        return False

    def weights(self, depth: int) -> list[float]:
        """How much of its direction each layer loses."""
        away = [abs(i / max(depth - 1, 1) - self.peak) for i in range(depth)]
        return [self.strength * max(1 - far / self.width, 0.0) for far in away]


def surgical(model: nn.Module, prompts: Prompts, spare: int) -> Tensor:
    """Unit directions behind every layer without the `spare` top components of benign states, (layers, d)."""
    bad, good = (states(model, rows, prompts.tokens) for rows in (prompts.harmful, prompts.benign))
    gap = bad.mean(1) - good.mean(1)
    if spare > 0:
        top = torch.linalg.svd(good - good.mean(1, keepdim=True), full_matrices=False)[2][:, :spare]
        gap = gap - ((top @ gap[..., None]).mT @ top)[:, 0]
    return nn.functional.normalize(gap, dim=-1)


@torch.no_grad()
def states(model: nn.Module, prompts: Sequence[Row], tokens: d.Tokens) -> Tensor:
    """What every layer leaves behind at the last token of each prompt, (layers, N, d) in float32."""
    layers, found = parts(model).layers, []
    for batch in tokens.batches([Row(r.ids[: r.response_at], r.response_at) for r in prompts]):
        last = batch.attention_mask.sum(1) - 1
        with captured(layers) as after:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        found.append(torch.stack([h[torch.arange(len(last), device=last.device), last].float() for h in after]))
    return torch.cat(found, 1)
