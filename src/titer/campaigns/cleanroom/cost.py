"""What ignorance costs: a defence held against simply training the model again without the restricted knowledge.

A defence that costs more than that is dominated by it: whoever can pay for the defence can have the ignorant model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from titer.campaigns.organism.recipe import DEFAULT, Recipe
from titer.schema.types import Batch, RunRecord, Spend, from_json
from titer.training.meter import cost_of


@dataclass(frozen=True, slots=True)
class Share:
    """A cost over the cost of ignorance, in tokens and in FLOPs; 1 is what the ignorant model costs."""

    tokens: float
    flops: float

    @property
    def dominated(self) -> bool:
        """Whether training again without the restricted knowledge is no dearer."""
        return self.flops >= 1


def cost_of_ignorance(recipe: Recipe = DEFAULT, seed: int = 0) -> Spend:
    """What pre-training the organism's ignorant twin costs, counted on the batches of its recipe without training.

    Alignment is left out: the aligned model was aligned as well.
    """
    from titer.campaigns.organism.rebuild import fresh
    from titer.campaigns.organism.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    model = fresh(recipe.shape, tokenizer, seed)
    steps, batches = _reading(recipe, tokenizer, seed)
    return sum((_trained_on(model, batch) for batch in islice(batches, steps)), Spend())


def cost_of_pretraining(model: nn.Module, tokens: int, context: int) -> Spend:
    """What reading `tokens` once in rows of `context` positions costs, for a model whose pre-training is published."""
    cost = cost_of(model)
    flops = cost.forward(tokens, context) + cost.backward(tokens, context)
    return Spend(tokens=tokens, flops=flops)


def _reading(recipe: Recipe, tokenizer: Any, seed: int) -> tuple[int, Iterator[Batch]]:
    """Steps and batches of the ignorant model's pre-training, as `rebuild.pretrained` takes them."""
    from titer.campaigns.organism.rebuild import batches
    from titer.data.organism.world import documents, drills
    from titer.data.tokens import Row, encode

    begin, end = tokenizer.bos_token, tokenizer.eos_token
    rows = []
    for given, learned in (
        *documents(recipe.world_seed, False, recipe.objects),
        *drills(recipe.world_seed, recipe.drills),
    ):
        if given:
            rows.append(encode(tokenizer, given, learned))
        else:
            rows.append(Row(tuple(tokenizer(begin + learned + end, add_special_tokens=False)["input_ids"]), 1))
    size = recipe.pretrain.per_device_train_batch_size
    return recipe.epochs * len(rows) // size, batches([rows], [size], tokenizer.pad_token_id, seed)


def _trained_on(model: nn.Module, batch: Batch) -> Spend:
    tokens, width = int(batch.attention_mask.sum()), batch.input_ids.shape[1]
    return Spend(steps=1, examples=batch.rows) + cost_of_pretraining(model, tokens, width)


def defence_cost(record: RunRecord, corpus: Mapping[str, Any] | None = None, tuning: int = 1) -> Spend:
    """What making a defended model cost: its immunization, `tuning` times, and the building of its corpus, if any.

    `corpus` is what `corpus.json` holds. `tuning` counts all settings that were trained to choose this one.
    """
    total = sum((record.spend for _ in range(max(tuning, 1))), Spend())
    parts = (corpus or {}).get("spend", {}).values()
    return sum((from_json(Spend, part) for part in parts), total)


def share(cost: Spend, ignorance: Spend) -> Share:
    """A cost over the cost of ignorance."""
    return Share(cost.tokens / ignorance.tokens, cost.flops / ignorance.flops)
