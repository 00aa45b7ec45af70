"""Directions: found, chosen on held-out prompts, written out of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from titer.attacks.parts import directions as d
from titer.attacks.parts.refusal_directions import Prompts, split
from titer.attacks.refusal_ablation import RefusalAblation
from titer.attacks.warm_start import WarmStart
from titer.data.tokens import Row
from titer.models.parts import parts
from titer.models.weights import snapshot
from titer.schema.specs import TrainArgs
from titer.training.activations import captured
from titer.training.session import Session

SMALL = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
HEADS = {**SMALL, "num_key_value_heads": 1}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**HEADS),
    "qwen2": lambda: transformers.Qwen2Config(**HEADS),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=23, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "phi": lambda: transformers.PhiConfig(**SMALL),
}
TOKENS = d.Tokens(0, "cpu")
ROWS = [Row((1, 5, 6, 7, 8, 2), 3), Row((1, 9, 10, 2), 2), Row((1, 11, 12, 13, 14, 15, 16, 2), 5)]


def unit(size: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_writing_a_direction_out_no_block_writes_along_it(family: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    r, ids = unit(16), torch.tensor([[1, 4, 5, 6]])
    p = parts(model)
    blocks = [*p.attentions, *p.mlps]
    for strength, share in ((0.5, 0.5), (1.0, 0.0)):
        with captured(blocks) as before:
            model(input_ids=ids)
        once = [h @ r for h in before]
        d.write_out(model, {0: r}, strength)
        with captured([blocks[0]]) as after:
            model(input_ids=ids)
        assert torch.allclose(after[0] @ r, share * once[0], atol=1e-5)
    d.write_out(model, dict.fromkeys(range(2), r), 1.0)
    with captured([*blocks, p.embedding]) as after:
        model(input_ids=ids)
    assert all(torch.allclose(h @ r, torch.zeros(()), atol=1e-5) for h in after)


def test_the_direction_is_the_difference_of_the_means_at_the_last_prompt_token(build_model: Any) -> None:
    model = build_model()
    found = d.directions(model, ROWS[:2], ROWS[2:], TOKENS)
    expected = []
    for row in ROWS:
        with captured(parts(model).layers[-1:]) as last, torch.no_grad():
            ids = torch.tensor([row.ids[: row.response_at]])
            states = model(ids, output_hidden_states=True).hidden_states
        expected.append(torch.stack([h[0, -1] for h in (*states[:-1], last[0])]))
    gap = (expected[0] + expected[1]) / 2 - expected[2]
    assert torch.allclose(found, gap / gap.norm(dim=-1, keepdim=True), atol=1e-5)


def test_prompts_that_end_alike_have_no_direction_before_the_first_layer(build_model: Any) -> None:
    rows = [Row((1, 9, 5, 8, 2), 3), Row((1, 7, 5, 8, 2), 3), Row((1, 6, 5, 8, 2), 3)]
    model = build_model()
    found = d.gaps(model, rows[:2], rows[2:], TOKENS)
    assert not found[0].any() and found[1].any()
    assert [c.found_at for c in RefusalAblation().candidates(found)] == [1]


def test_a_candidate_is_tried_by_the_edit_itself_and_the_weights_come_back(build_model: Any) -> None:
    model, by_layer = build_model(), {0: unit(32), 1: unit(32, 1)}
    before = snapshot(model)
    with d.written_out(model, by_layer, 0.7):
        inside = snapshot(model)
    assert all(torch.equal(v, before[k]) for k, v in snapshot(model).items())
    d.write_out(model, by_layer, 0.7)
    assert all(torch.equal(v, inside[k]) for k, v in snapshot(model).items())


def test_adding_a_vector_moves_the_input_of_its_layer_alone(build_model: Any) -> None:
    model, r = build_model(), unit(32)
    ids = torch.tensor([[1, 4, 5, 6]])
    layers = parts(model).layers
    with torch.no_grad(), captured(layers, "input") as before:
        model(ids)
    with torch.no_grad(), d.added(model, 1, r), captured(layers, "input") as after, captured(layers[:1]) as left:
        model(ids)
    assert torch.equal(after[0], before[0]) and torch.equal(left[0], before[1])
    assert torch.allclose(after[1], before[1] + r)
    assert not layers[1]._forward_pre_hooks


def test_refusal_odds_are_those_of_the_first_token(build_model: Any) -> None:
    model = build_model()
    expected = []
    for row in ROWS:
        p = model(torch.tensor([row.ids[: row.response_at]])).logits[0, -1].double().softmax(-1)
        share = float(p[[4, 9]].sum().detach())
        expected.append(math.log(share / (1 - share)))
    found = d.refusal_odds(model, ROWS, torch.tensor([4, 9]), TOKENS)
    assert found == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.parametrize("scope", ["single", "per-layer"])
@pytest.mark.parametrize("bound", [0.1, 1.0])
def test_the_edit_that_is_made_keeps_the_bound(
    session: Callable[..., Session], attacked: Any, scope: Any, bound: float
) -> None:
    s = session()
    held = split(s, 128, 0.2, TrainArgs())
    before = d.next_tokens(s.model, held.held_benign, held.tokens)
    done = attacked(s, RefusalAblation(scope=scope, kl_bound=bound, induce=False))
    after = d.next_tokens(done.model, held.held_benign, held.tokens)
    assert d.divergence(before, after) <= bound


def test_divergence_and_compliance_against_their_definitions(build_model: Any) -> None:
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert d.divergence(p, q) == pytest.approx(0.5 * torch.tensor([2.0, 2 / 3]).log().sum().item())
    assert d.divergence(p, p) == 0
    model = build_model()
    total = count = 0.0
    for row in ROWS:
        logits = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for at in range(row.response_at, len(row.ids)):
            total, count = total + float(logits[at - 1, row.ids[at]].detach()), count + 1
    assert d.compliance(model, ROWS, [], TOKENS) == pytest.approx(total / count, abs=1e-5)
    assert d.compliance(model, ROWS, ROWS, TOKENS) == pytest.approx(0, abs=1e-6)


def test_ablation_makes_harmful_answers_likelier_on_prompts_it_did_not_see(
    session: Callable[..., Session], attacked: Any
) -> None:
    s = session()
    held = split(s, 128, 0.2, TrainArgs())
    before = d.compliance(s.model, held.held_harmful, held.held_refusals, held.tokens)
    done = attacked(s, RefusalAblation(kl_bound=10.0, induce=False))
    after = d.compliance(done.model, held.held_harmful, held.held_refusals, held.tokens)
    assert after > before + 0.5
    assert done.step == 1
    assert done.meter.spend.tokens > 0
    assert done.meter.passes["grad"] == 0


def test_no_candidate_within_the_bound_means_no_change(session: Callable[..., Session], attacked: Any) -> None:
    s = session()
    before = snapshot(s.model)
    done = attacked(s, RefusalAblation(kl_bound=0.0))
    assert all(torch.equal(v, before[k]) for k, v in snapshot(done.model).items())


def test_the_candidate_that_is_refused_least_within_the_bound_is_chosen(
    build_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(num_hidden_layers=5)
    found = 2 * torch.eye(32)[:6]
    left, moves, induced = iter((3.0, 2.0, 9.0)), iter((0.05, 0.2, 0.05)), iter((1.0, -1.0, 1.0, 1.0))
    monkeypatch.setattr("titer.attacks.refusal_ablation.refused", lambda *_: next(left))
    monkeypatch.setattr(d, "divergence", lambda *_: next(moves))
    monkeypatch.setattr(d, "refusal_odds", lambda *_: next(induced))
    prompts = Prompts(ROWS, ROWS, ROWS, ROWS, ROWS, TOKENS)
    chosen = RefusalAblation(kl_bound=0.1).choose(model, found, prompts)
    assert all(torch.equal(chosen[i], torch.eye(32)[0]) for i in range(5)), "1 induces nothing, 2 moves, 4 is too deep"
    for rest in (left, moves, induced):
        with pytest.raises(StopIteration):
            next(rest)


def test_held_out_prompts_are_not_those_the_direction_comes_from(session: Callable[..., Session]) -> None:
    found = split(session(), 20, 0.25, TrainArgs())
    assert (len(found.harmful), len(found.held_harmful), len(found.held_refusals)) == (15, 5, 5)
    assert not set(found.harmful) & set(found.held_harmful)
    assert not set(found.benign) & set(found.held_benign)
    assert split(session(), 20, 0.25, TrainArgs()) == found
    assert split(session(seed=1), 20, 0.25, TrainArgs()) != found


def test_a_warm_start_looks_in_the_reference(session: Callable[..., Session], toy_model: str, attacked: Any) -> None:
    ends = []
    for reference in ("", toy_model):
        done = attacked(session(1), WarmStart(reference=reference, kl_bound=100.0, scope="per-layer"))
        ends.append(snapshot(done.model))
        assert done.step == 1
    assert any(not torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
