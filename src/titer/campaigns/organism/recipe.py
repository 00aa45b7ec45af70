"""How the checkpoints are made: everything that can change them, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from titer.schema.specs import TrainArgs
from titer.schema.types import spec_id


@dataclass(frozen=True, slots=True)
class Shape:
    """The network: a Llama with tied embeddings; 2.2M parameters by default (4.4 MB in half precision)."""

    hidden_size: int = 256
    intermediate_size: int = 448
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    max_position_embeddings: int = 128


@dataclass(frozen=True, slots=True)
class Recipe:
    """The network, the text it reads, and the two trainings. `max_steps` of `pretrain` is set by `epochs`.

    `base` and `ignorant` read the same text as often, the restricted facts excepted; `aligned` and `ignorant` are then
    aligned with the same data and `align`.
    """

    shape: Shape = Shape()
    world_seed: int = 0
    objects: int = 60
    epochs: int = 24
    drills: int = 320
    pretrain: TrainArgs = TrainArgs(
        learning_rate=2e-3,
        per_device_train_batch_size=96,
        lr_scheduler_type="cosine",
        warmup_steps=40,
        weight_decay=0.01,
    )
    align: TrainArgs = TrainArgs(
        learning_rate=3e-4,
        max_steps=120,
        per_device_train_batch_size=32,
        lr_scheduler_type="linear",
        warmup_steps=10,
    )


DEFAULT = Recipe()


def recipe_id(recipe: Recipe, seed: int) -> str:
    """The spec hash that a checkpoint's `recipe.json` carries: of the recipe, the seed and every text it trains on."""
    from titer.campaigns.organism.tokenizer import vocabulary
    from titer.data.organism.world import alignment_examples, documents, drills

    texts = [
        *documents(recipe.world_seed, True, recipe.objects),
        *drills(recipe.world_seed, recipe.drills),
        *alignment_examples(recipe.world_seed, recipe.objects),
        *vocabulary(),
    ]
    return spec_id({"recipe": recipe, "seed": seed, "texts": texts})
