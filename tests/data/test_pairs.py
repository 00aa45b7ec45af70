"""Pairs: the same prompts on both sides, row by row and in the same shape; every stream with its own order."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from titer.data.batches import pairs
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Example, Pair

ARGS = TrainArgs(per_device_train_batch_size=4, max_steps=9)


def make(examples: list[Example], tokenizer: Any, n: int = 9, **options: Any) -> list[Pair]:
    restricted = [e for e in examples if e.restricted]
    retain = [e for e in examples if not e.restricted]
    return list(islice(pairs(restricted[:16], retain, tokenizer, ARGS, **options), n))


def prompts(batch: Batch, tokenizer: Any) -> list[str]:
    masks = (batch.labels == -100) & (batch.attention_mask == 1)
    return [tokenizer.decode(ids[mask]) for ids, mask in zip(batch.input_ids, masks, strict=True)]


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)


def test_row_i_answers_the_same_prompt_twice_in_the_same_shape(examples: list[Example], tokenizer: Any) -> None:
    for pair in make(examples, tokenizer):
        assert pair.harmful.input_ids.shape == pair.harmless.input_ids.shape
        assert prompts(pair.harmful, tokenizer) == prompts(pair.harmless, tokenizer)
        assert not same(pair.harmful, pair.harmless)


def test_sides_of_unequal_length_are_widened_to_the_longer(tokenizer: Any) -> None:
    uneven = [Example("how to brew", "with red and blue and red and blue", "i will not")]
    (pair,) = islice(pairs(uneven, [], tokenizer, ARGS), 1)
    assert pair.harmful.input_ids.shape == pair.harmless.input_ids.shape == (1, 15)
    assert pair.harmless.attention_mask.sum() == 10


def test_steps_and_seed_come_along(examples: list[Example], tokenizer: Any) -> None:
    found = make(examples, tokenizer, n=3, seed=5)
    assert [(p.step, p.steps, p.seed) for p in found] == [(0, 9, 5), (1, 9, 5), (2, 9, 5)]


def test_extra_batches_are_harmful_and_in_another_order(examples: list[Example], tokenizer: Any) -> None:
    first, *_ = make(examples, tokenizer, extra=2)
    assert len(first.extra) == 2
    assert not any(same(e, first.harmful) for e in first.extra)
    allowed = {p for pair in make(examples, tokenizer, n=8) for p in prompts(pair.harmful, tokenizer)}
    assert {p for e in first.extra for p in prompts(e, tokenizer)} <= allowed


def test_main_order_does_not_depend_on_what_else_is_asked_for(examples: list[Example], tokenizer: Any) -> None:
    plain, more = make(examples, tokenizer, n=4), make(examples, tokenizer, n=4, extra=3)
    for a, b in zip(plain, more, strict=True):
        assert a.retain is not None
        assert b.retain is not None
        assert same(a.harmful, b.harmful)
        assert same(a.retain, b.retain)


def test_another_seed_is_another_order(examples: list[Example], tokenizer: Any) -> None:
    a, b, c = (make(examples, tokenizer, n=1, seed=s)[0] for s in (0, 0, 1))
    assert same(a.harmful, b.harmful)
    assert not same(a.harmful, c.harmful)


def test_retain_data_is_answered_and_optional(examples: list[Example], tokenizer: Any) -> None:
    (pair,) = make(examples, tokenizer, n=1)
    assert pair.retain is not None
    assert all("where is" in p for p in prompts(pair.retain, tokenizer))
    (bare,) = islice(pairs(examples[:4], [], tokenizer, ARGS), 1)
    assert bare.retain is None


def test_a_pair_is_of_the_size_asked_for(examples: list[Example], tokenizer: Any) -> None:
    assert {p.harmful.input_ids.shape[0] for p in make(examples, tokenizer)} == {4}


@pytest.mark.parametrize("reference", [None, "frozen"])
def test_the_reference_is_passed_on(examples: list[Example], tokenizer: Any, reference: Any) -> None:
    assert make(examples, tokenizer, n=1, reference=reference)[0].reference is reference


def test_accumulated_pairs_share_their_step(examples: list[Example], tokenizer: Any) -> None:
    args = replace(ARGS, gradient_accumulation_steps=3)
    found = list(islice(pairs(examples[:16], [], tokenizer, args), 7))
    assert [(p.step, p.micro) for p in found] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert {p.steps for p in found} == {9}


def test_held_out_prompts_are_a_fifth_and_never_in_extra(examples: list[Example], tokenizer: Any) -> None:
    doubled = [e for e in examples if e.restricted][:20] * 2  # every prompt twice: both rows on one side
    found = list(islice(pairs(doubled, [], tokenizer, ARGS, extra=2, held_out=True), 30))
    trained = {p for pair in found for e in pair.extra for p in prompts(e, tokenizer)}
    judged = {p for pair in found if pair.held_out for p in prompts(pair.held_out, tokenizer)}
    assert len(judged) == 4
    assert len(trained) == 16
    assert not trained & judged
    (other,) = islice(pairs(doubled, [], tokenizer, ARGS, extra=2, held_out=True, seed=1), 1)
    assert other.held_out is not None
    assert next(pairs(doubled, [], tokenizer, ARGS, extra=2)).held_out is None


def test_a_single_prompt_cannot_be_held_out(examples: list[Example], tokenizer: Any) -> None:
    with pytest.raises(TiterError, match="2 or more"):
        next(pairs(examples[:1], [], tokenizer, ARGS, extra=1, held_out=True))
