"""Self-degraded defence: safety SFT on good answers to other questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from titer.defences.safety_sft import SafetySFT
from titer.schema.errors import TiterError
from titer.schema.types import Example, Pair


@dataclass(frozen=True)
class SDD:
    """Safety SFT on good answers to other questions, so that harmful fine-tuning pulls ability down (2507.21182).

    `prepare` gives every restricted prompt the answer of an open example, the one of 16 drawn by the seed that
    shares the fewest words with it. The paper keeps pairs whose sentence embeddings have a cosine of at most
    0.25; word overlap (Jaccard at most `max_overlap`) stands in for that model here. The open examples must be among
    the examples given.
    """

    name: ClassVar[str] = "sdd"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless"})
    passes: ClassVar[str] = "1 f/b (2 with retain)"
    source: ClassVar[str] = "Chen et al., ACL 2025, arXiv 2507.21182"
    alone: ClassVar[str] = "it rewrites the answers every member would train on"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "reported by 2605.14605, not checked here: an adaptive fine-tuning attack"
    inner_batches: ClassVar[int] = 0

    max_overlap: float = 0.25
    retain_weight: float = 1.0

    def prepare(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """Restricted examples with an unrelated answer each; open ones as they are."""
        answers = [e for e in examples if not e.restricted]
        if not answers:
            raise TiterError("sdd: needs open examples to take unrelated answers from: add open examples to the data")
        draw = random.Random(f"{seed}/sdd")
        return [self._degrade(e, answers, draw) if e.restricted else e for e in examples]

    def _degrade(self, example: Example, answers: Sequence[Example], draw: random.Random) -> Example:
        tried = draw.sample(list(answers), min(len(answers), 16))
        overlaps = [max(overlap(example.prompt, a.prompt), overlap(example.prompt, a.harmless)) for a in tried]
        best = min(range(len(tried)), key=overlaps.__getitem__)
        if overlaps[best] > self.max_overlap:
            raise TiterError(f"sdd: no unrelated answer for {example.prompt[:50]!r}: raise max_overlap or add data")
        return replace(example, harmless=tried[best].harmless)

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (CE on the prepared answers), retain."""
        return SafetySFT(self.retain_weight).backward(model, pair)


def overlap(a: str, b: str) -> float:
    """Jaccard overlap of the words of two texts."""
    left, right = set(a.lower().split()), set(b.lower().split())
    return len(left & right) / len(left | right) if left | right else 0.0
