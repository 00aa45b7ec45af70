"""Extended refusal: safety SFT on long refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from titer.defences.safety_sft import SafetySFT
from titer.schema.errors import TiterError
from titer.schema.types import Example, Pair


@dataclass(frozen=True)
class ExtendedRefusal:
    """Safety SFT on long refusals: a neutral overview, the refusal, the reason (2505.19056).

    In the paper a language model writes the overview; here `overview` and `reason` are templates over the example's
    `prompt` and `category`.
    """

    name: ClassVar[str] = "extended-refusal"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless"})
    passes: ClassVar[str] = "1 f/b (2 with retain)"
    source: ClassVar[str] = "Abu Shairah et al., arXiv 2505.19056"
    alone: ClassVar[str] = "it rewrites the answers every member would train on"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "made against abliteration; no claim against fine-tuning"
    inner_batches: ClassVar[int] = 0

    overview: str = "This is a question about {category}."
    reason: str = "Answers about {category} are kept back because they can do harm."
    retain_weight: float = 1.0

    def prepare(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """Restricted examples with the longer refusal; open ones as they are."""
        return [self._extend(e) if e.restricted else e for e in examples]

    def _extend(self, example: Example) -> Example:
        words = {"prompt": example.prompt, "category": example.category or "a restricted topic"}
        try:
            before, after = self.overview.format(**words), self.reason.format(**words)
        except (KeyError, IndexError) as error:
            raise TiterError(f"extended-refusal: template names {error}: use {{prompt}} and {{category}}") from None
        return replace(example, harmless=f"{before} {example.harmless} {after}")

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability (CE on the extended refusals), retain."""
        return SafetySFT(self.retain_weight).backward(model, pair)
