"""Deep alignment: learn to come back to the refusal after the first tokens of a harmful answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.defences.base import draws
from titer.defences.safety_sft import retain_backward
from titer.schema.types import Batch, Pair
from titer.training.gradients import IGNORE
from titer.training.losses import response_ce


@dataclass(frozen=True)
class DeepAlignment:
    """CE on refusals, half of which follow the first k tokens of the harmful answer (2406.05946, augmentation).

    For every row, with probability `share`, k is uniform on 1 .. `max_prefix` (no longer than the answer) and the row
    becomes prompt + k harmful tokens + refusal, with a loss on the refusal alone. The anchor on benign data is
    `pair.retain`; as in the code the loss is one mean over the response tokens of both. An anchor token counts
    `retain_weight` tokens: the authors' batches have 16 anchor rows to 4 of safety (alpha = .2 in the paper), and
    `DeepAlignment.paper()` makes up for that where both are of one size. `as_published=False` adds CE of the safety
    rows + `retain_weight` x CE of the anchor, and never takes the answer's last token, its stop, into the prefix.
    Deviation: the authors' anchor is answered by the model itself beforehand, here it is the retain data as it comes.
    """

    name: ClassVar[str] = "deep-alignment"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "1 f/b (2 with retain)"
    source: ClassVar[str] = "Qi et al., ICLR 2025, arXiv 2406.05946"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "made against prefilling and few-shot attacks; no claim against long fine-tuning"
    inner_batches: ClassVar[int] = 0

    share: float = 0.5
    max_prefix: int = 100
    retain_weight: float = 1.0
    as_published: bool = True

    @staticmethod
    def paper() -> DeepAlignment:
        """Four anchor rows for every row of safety."""
        return DeepAlignment(retain_weight=4.0)

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (on the augmented rows), prefix (mean k), retain, before their weights."""
        prefixes = self._lengths(pair)
        safety = recover(pair, prefixes)
        weight, anchor = self._weights(safety, pair)
        loss = response_ce(model, safety)
        (weight * loss).backward()
        terms = {"stability": loss.item(), "prefix": sum(prefixes) / len(prefixes)}
        terms |= retain_backward(model, pair, anchor)
        return {"loss": weight * terms["stability"] + anchor * terms.get("retain", 0.0)} | terms

    def _weights(self, safety: Batch, pair: Pair) -> tuple[float, float]:
        """What the mean loss of the safety rows and that of the anchor count."""
        if pair.retain is None:
            return 1.0, 0.0
        if not self.as_published:
            return 1.0, self.retain_weight
        own, other = (int((b.labels[:, 1:] != IGNORE).sum()) for b in (safety, pair.retain))
        shared = self.retain_weight * other
        return own / (own + shared), shared / (own + shared)

    def _lengths(self, pair: Pair) -> list[int]:
        random = draws(pair, "cpu", "deep-alignment")
        answers = (pair.harmful.labels != IGNORE).sum(1).tolist()
        chance, size = (torch.rand(len(answers), generator=random).tolist() for _ in range(2))
        longest = [min(self.max_prefix, n if self.as_published else n - 1) for n in answers]
        return [
            1 + int(u * k) if c < self.share and k > 0 else 0 for c, u, k in zip(chance, size, longest, strict=True)
        ]


def recover(pair: Pair, prefixes: list[int]) -> Batch:
    """Rows of prompt + that many harmful tokens + refusal, labels on the refusal alone, right-padded."""
    rows = [_row(pair, i, k) for i, k in enumerate(prefixes)]
    width = max(len(ids) for ids, _ in rows)
    device = pair.harmless.input_ids.device

    def stack(values: list[Tensor], fill: int) -> Tensor:
        out = torch.full((len(values), width), fill, dtype=torch.int64, device=device)
        for i, v in enumerate(values):
            out[i, : len(v)] = v
        return out

    mask = stack([torch.ones_like(ids) for ids, _ in rows], 0)
    return Batch(stack([ids for ids, _ in rows], 0), mask, stack([labels for _, labels in rows], IGNORE))


def _row(pair: Pair, i: int, prefix: int) -> tuple[Tensor, Tensor]:
    refusal = pair.harmless.labels[i] != IGNORE
    start = int(refusal.int().argmax())
    prompt, answer = pair.harmless.input_ids[i, :start], pair.harmless.input_ids[i][refusal]
    harmful = pair.harmful.input_ids[i][pair.harmful.labels[i] != IGNORE][:prefix]
    ids = torch.cat([prompt, harmful, answer])
    labels = torch.cat([ids.new_full((len(ids) - len(answer),), IGNORE), answer])
    return ids, labels
