"""Lens and patching against float64 written from the maths with Hugging Face's own hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from titer.data.tokens import Row, encode_all
from titer.mechanism.depth import depth, drops, scores
from titer.mechanism.lens import lens
from titer.mechanism.patching import answer_logp, patched
from titer.mechanism.stages import tone
from titer.mechanism.states import Reader, pooled
from titer.mechanism.which import likely, put_back, swapped
from titer.models.parts import parts
from titer.schema.types import Example

READER = Reader(0, 3)


@pytest.fixture(scope="module")
def answers(tokenizer: Any, examples: list[Example]) -> list[Row]:
    """Rows of several lengths, so that batches are padded."""
    chosen = examples[:5]
    long = Example("how to brew the amber and the birch and the cedar", "with red and blue and green", "")
    return encode_all(tokenizer, [*chosen, long], "harmful")


def said(logits: Tensor, row: Row) -> float:
    """Mean log-probability of one row's answer from its logits (T, V)."""
    picked = [torch.log_softmax(logits[t - 1], -1)[row.ids[t]] for t in range(row.response_at, len(row.ids))]
    return float(torch.stack(picked).mean())


def test_the_lens_is_the_norm_and_the_head_on_every_hidden_state(
    build_model: Callable[..., Any], answers: list[Row]
) -> None:
    model = build_model(3).double()
    found = lens(model, answers, READER)
    for i, row in enumerate(answers):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
            read = [model.lm_head(model.model.norm(h[0])) for h in out.hidden_states[:-1]]
        expected = [said(logits, row) for logits in (*read, out.logits[0])]
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-9)


def test_the_last_lens_is_what_the_model_says(model: Any, answers: list[Row]) -> None:
    np.testing.assert_allclose(lens(model, answers, READER)[-1], likely(model, answers, READER), rtol=1e-5)


def set_states(receiver: Any, donor: Any, layer: int, row: Row) -> float:
    """One row's answer once a layer's states at the predicting positions are the donor's: set, not shifted."""
    kept: list[Tensor] = []
    span = slice(row.response_at - 1, len(row.ids) - 1)
    ids = torch.tensor([row.ids])

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    def put(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, span] = kept[0][:, span]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with torch.no_grad():
        handle = donor.model.layers[layer].register_forward_hook(keep)
        donor(input_ids=ids)
        handle.remove()
        handle = receiver.model.layers[layer].register_forward_hook(put)
        logits = receiver(input_ids=ids).logits[0]
        handle.remove()
    return said(logits, row)


def test_patching_sets_the_donors_states_where_the_answer_is_predicted(
    build_model: Callable[..., Any], answers: list[Row]
) -> None:
    full, source = build_model(1).double(), build_model(2).double()
    found = drops(full, source, answers, READER)
    plain = likely(full, answers, READER)
    for layer in range(2):
        expected = [set_states(full, source, layer, row) for row in answers]
        np.testing.assert_allclose(plain - found[layer], expected, rtol=1e-9)


def test_what_is_patched_from_itself_loses_nothing(model: Any, answers: list[Row]) -> None:
    assert np.abs(drops(model, model, answers, READER)).max() == 0
    changed = tone(model, model, answers, READER)
    everything = (*changed.layers, *changed.attentions, *changed.mlps)
    assert [e.value for e in everything] == [0] * 6


def test_the_depth_score_is_the_papers_formula(answers: list[Row]) -> None:
    draw = np.random.default_rng(0)
    own, ignorant = draw.normal(0.5, 1, (4, 30)), draw.normal(0.5, 1, (4, 30))
    found = scores(own, ignorant)
    for i in range(30):
        layers = [layer for layer in range(4) if ignorant[layer, i] > 0.05]
        if not layers:
            assert np.isnan(found[i])
            continue
        gone = [min(max(own[k, i] / ignorant[k, i], 0), 1) for k in layers]
        top = sum(ignorant[k, i] * share for k, share in zip(layers, gone, strict=True))
        assert found[i] == pytest.approx(top / sum(ignorant[k, i] for k in layers))


def test_the_depth_score_is_one_for_the_ignorant_model_and_zero_for_the_full_one(
    build_model: Callable[..., Any], answers: list[Row]
) -> None:
    full, ignorant = build_model(1), build_model(2)
    lacks = np.abs(drops(full, ignorant, answers, READER)) + 0.1
    as_ignorant, intact = (
        depth(lacks, lacks).score,
        depth(drops(full, full, answers, READER), lacks).score,
    )
    assert as_ignorant is not None and as_ignorant.value == 1
    assert intact is not None and intact.value == 0
    assert depth(lacks, None).score is None


def test_a_text_whose_knowledge_nobody_lacks_has_no_score() -> None:
    found = depth(np.zeros((2, 3)), np.zeros((2, 3)))
    assert found.score is not None and found.score.value is None and found.score.n == 0


def test_patching_all_of_attention_and_mlp_leaves_the_hooks_gone(
    build_model: Callable[..., Any], answers: list[Row]
) -> None:
    a, b = build_model(1), build_model(2)
    before = likely(a, answers, READER)
    (batch,) = Reader(0, 8).batches(answers)
    own, other = parts(a), parts(b)
    plain, moved = patched(a, b, ((*own.attentions, *own.mlps), (*other.attentions, *other.mlps)), batch)
    assert moved.shape == (4, len(answers))
    assert float((moved - plain).abs().min(0).values.max()) > 0
    np.testing.assert_array_equal(likely(a, answers, READER), before)


def test_pooled_states_are_means_over_answers_and_the_prompts_last_token(
    build_model: Callable[..., Any], answers: list[Row]
) -> None:
    model = build_model(4).double()
    found = pooled(model, answers, READER)
    for i, row in enumerate(answers):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        for layer in range(2):  # Hugging Face norms the last one
            expected = states[layer][0, row.response_at :].mean(0)
            np.testing.assert_allclose(found.answer[layer, i], expected, rtol=1e-7, atol=1e-12)
            last = states[layer][0, row.response_at - 1]
            np.testing.assert_allclose(found.prompt[layer, i], last, rtol=1e-9, atol=1e-12)


def test_a_layer_put_back_is_bit_for_bit_the_models_own_afterwards(
    build_model: Callable[..., Any], answers: list[Row]
) -> None:
    model, reference = build_model(1), build_model(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with swapped(model.model.layers[0], reference.model.layers[0]):
        inside = likely(model, answers, READER)
    found = put_back(model, reference, answers, READER)
    assert found[0].value == pytest.approx(float((inside - likely(model, answers, READER)).mean()))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [e.value for e in put_back(model, model, answers, READER)] == [0, 0]


def test_padding_does_not_move_any_number(model: Any, answers: list[Row]) -> None:
    def measured(size: int) -> Sequence[Any]:
        reader = Reader(0, size)
        return lens(model, answers, reader), pooled(model, answers, reader).answer

    for alone, together in zip(measured(1), measured(6), strict=True):
        np.testing.assert_allclose(alone, together, atol=1e-5)


def test_answers_are_scored_in_nats_a_token(model: Any, answers: list[Row]) -> None:
    (batch,) = Reader(0, 8).batches(answers)
    with torch.no_grad():
        found = answer_logp(model, batch)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    for i, row in enumerate(answers):
        assert float(found[i]) == pytest.approx(said(logits[i], row), rel=1e-5)
