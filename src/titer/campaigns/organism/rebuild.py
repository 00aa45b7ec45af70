"""Rebuild the checkpoints from a seed: pre-train, align, measure, save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from titer.campaigns.organism.recipe import DEFAULT, Recipe, Shape, recipe_id
from titer.campaigns.organism.tokenizer import build_tokenizer
from titer.data.organism.world import alignment_examples, documents, drills, examples
from titer.schema.types import Example

CHECKPOINTS = ("base", "aligned", "ignorant")


def build(output_dir: str | Path, recipe: Recipe = DEFAULT, seed: int = 0) -> dict[str, Path]:
    """Make `base`, `aligned` and `ignorant` under `output_dir`; name -> model folder with its `recipe.json`.

    The default recipe takes under 10 minutes on 2 cores.
    """
    tokenizer, made = build_tokenizer(), {}
    base = pretrained(recipe, tokenizer, seed, restricted=True)
    made["base"] = _save(base, tokenizer, Path(output_dir) / "base", recipe, seed)
    aligned = align(base, recipe, tokenizer, seed)
    made["aligned"] = _save(aligned, tokenizer, Path(output_dir) / "aligned", recipe, seed)
    ignorant = align(pretrained(recipe, tokenizer, seed, restricted=False), recipe, tokenizer, seed)
    made["ignorant"] = _save(ignorant, tokenizer, Path(output_dir) / "ignorant", recipe, seed)
    return made


def fresh(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """A Llama of this shape with weights drawn from `seed`, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrained(recipe: Recipe, tokenizer: Any, seed: int, *, restricted: bool) -> Any:
    """A fresh model after reading the world's text `recipe.epochs` times, with or without the restricted facts."""
    from titer.data.tokens import Row, encode

    pairs = [*documents(recipe.world_seed, restricted, recipe.objects), *drills(recipe.world_seed, recipe.drills)]
    rows = []
    for given, learned in pairs:
        if given:
            rows.append(encode(tokenizer, given, learned))
        else:
            text = tokenizer(tokenizer.bos_token + learned + tokenizer.eos_token, add_special_tokens=False)
            rows.append(Row(tuple(text["input_ids"]), 1))
    size = recipe.pretrain.per_device_train_batch_size
    args = replace(recipe.pretrain, max_steps=recipe.epochs * len(rows) // size)
    model = fresh(recipe.shape, tokenizer, seed)
    _train(model, batches([rows], [size], tokenizer.pad_token_id, seed), args, seed)
    return model


def align(model: Any, recipe: Recipe, tokenizer: Any, seed: int) -> Any:
    """Train `model` in place to refuse restricted prompts and answer open ones: each half of every batch."""
    from titer.data.tokens import encode_all

    rows = alignment_examples(recipe.world_seed, recipe.objects)
    pools = [encode_all(tokenizer, [e for e in rows if e.restricted is kind], "harmless") for kind in (True, False)]
    size = recipe.align.per_device_train_batch_size
    _train(model, batches(pools, [size // 2, size - size // 2], tokenizer.pad_token_id, seed), recipe.align, seed)
    return model


def batches(pools: Sequence[Sequence[Any]], sizes: Sequence[int], pad_id: int, seed: int) -> Iterator[Any]:
    """Endless batches with `sizes[i]` rows from `pools[i]`."""
    from titer.data.batches import collate, order

    orders = [order(len(pool), size, seed) for pool, size in zip(pools, sizes, strict=True)]
    while True:
        yield collate([pool[i] for pool, numbers in zip(pools, orders, strict=True) for i in next(numbers)], pad_id)


def _train(model: Any, batches: Iterator[Any], args: Any, seed: int) -> None:
    from titer.schema.errors import TiterError
    from titer.training.loop import train
    from titer.training.losses import sft_rule

    ended = train(model, sft_rule, batches, args, seed=seed)
    if ended.reason != "finished":
        raise TiterError(f"organism build: training {ended.reason} at step {ended.steps}: change the recipe")


def measure(model: Any, tokenizer: Any, rows: Sequence[Example]) -> dict[str, float]:
    """What a model does on examples: harm and refusals on the restricted, accuracy and refusals on the open ones."""
    from titer.data.tokens import render_prompt
    from titer.judges.exact import ExactJudge
    from titer.models.generate import generate

    found: dict[str, float] = {}
    for side, kind in (("restricted", True), ("open", False)):
        chosen = [e for e in rows if e.restricted is kind]
        if not chosen:
            continue
        prompts = [render_prompt(tokenizer, e.prompt) for e in chosen]
        texts = generate(model, tokenizer, prompts, max_new_tokens=14, batch_size=256)
        scores = ExactJudge().score(prompts, texts, [e.harmful or e.harmless for e in chosen])
        found[f"{side}_right"] = sum(s.value or 0.0 for s in scores) / len(scores)
        found[f"{side}_refused"] = sum(s.outcome == "refuse" for s in scores) / len(scores)
    return {key: round(value, 4) for key, value in found.items()}


def held_out(recipe: Recipe = DEFAULT) -> list[Example]:
    """The examples of the evaluation split: alignment never saw them."""
    from titer.data.splits import split_of

    return [e for e in examples(recipe.world_seed, objects=recipe.objects) if split_of(e.prompt) == "evaluation"]


def _save(model: Any, tokenizer: Any, folder: Path, recipe: Recipe, seed: int) -> Path:
    """Write the folder in half precision; the config says float32, so that it is computed in single precision.

    The measured facts in `recipe.json` are of the saved weights.
    """
    import torch
    from transformers import LlamaForCausalLM

    from titer.models.weights import save_model
    from titer.schema.files import write_json

    half: Any = LlamaForCausalLM(model.config)
    half = half.to(torch.float16)
    half.load_state_dict(model.state_dict())
    save_model(half, tokenizer, folder)
    _say_float32(folder / "config.json")
    saved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    measured = measure(saved, tokenizer, held_out(recipe))
    write_json(
        folder / "recipe.json",
        {"id": recipe_id(recipe, seed), "seed": seed, "recipe": recipe, "held_out": measured},
    )
    return folder


def _say_float32(path: Path) -> None:
    from titer.schema.files import read_json, write_json

    write_json(path, {**read_json(path), "dtype": "float32"})
