"""Attacks that edit the difference or more than one direction, and those that act while the model answers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from titer.attacks.activation_noise import ActivationNoise, noised, scaled_noise
from titer.attacks.base_difference import BaseDifference, rank_of
from titer.attacks.in_context import InContext
from titer.attacks.parts import directions as d
from titer.attacks.parts.edits import matrices
from titer.attacks.parts.refusal_directions import split
from titer.attacks.rank_ablation import RankAblation, states, surgical
from titer.models.load import load_model
from titer.models.parts import parts
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.training.session import Session


def test_the_rank_holds_the_energy_asked_for() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [rank_of(values, e) for e in (0.5, 9 / 14 + 1e-9, 0.9, 0.95, 1.0)] == [1, 2, 2, 3, 4]
    assert rank_of(torch.zeros(4), 0.9) == 0


def test_what_a_defence_added_in_low_rank_is_found_and_taken_away(
    session: Callable[..., Session], attacked: Any, toy_model: str
) -> None:
    reference, _ = load_model(toy_model)
    s = session(2)
    s.model = deepcopy(reference)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in matrices(s.model):
            weight: Any = module.weight
            rows, columns = weight.shape
            weight += 0.3 * torch.randn(rows, 2, generator=draw) @ torch.randn(2, columns, generator=draw)
    done = attacked(s, BaseDifference(reference=toy_model, energy=0.99))
    for ours, theirs in zip(matrices(done.model), matrices(reference), strict=True):
        gap: Any = ours.weight - theirs.weight  # type: ignore[operator]
        assert gap.norm() < 0.15 * theirs.weight.norm()  # type: ignore[operator, union-attr]
    assert done.step == 1 and done.meter.spend.flops > 0
    exact = attacked(s, BaseDifference(reference=toy_model, energy=1.0))
    for ours, theirs in zip(matrices(exact.model), matrices(reference), strict=True):
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-5)  # type: ignore[arg-type]


def test_a_difference_without_low_rank_is_left_where_only_low_ranks_are_asked_for() -> None:
    full = torch.eye(8)
    assert torch.equal(BaseDifference(most=0.5).part(full), torch.zeros(8, 8))
    assert torch.allclose(BaseDifference(most=1.0, energy=1.0).part(full), full)


def test_a_base_difference_needs_its_reference(session: Callable[..., Session], tmp_path: Any) -> None:
    with pytest.raises(TiterError, match="no reference"):
        BaseDifference().run(session())
    other = session(1, seed=1)
    other.model.config.num_hidden_layers = 1
    other.model.model.layers = other.model.model.layers[:1]
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TiterError, match="not the same model"):
        BaseDifference(reference=str(tmp_path)).run(session())


@pytest.mark.parametrize("bound", [0.05, 1.0])
def test_rounds_of_ablation_keep_the_bound_and_take_more_than_one_direction(
    session: Callable[..., Session], attacked: Any, bound: float
) -> None:
    s = session(2)
    held = split(s, 128, 0.2, TrainArgs())
    before, weights = d.next_tokens(s.model, held.held_benign, held.tokens), snapshot(s.model)
    done = attacked(s, RankAblation(k=3, kl_bound=bound))
    assert d.divergence(before, d.next_tokens(done.model, held.held_benign, held.tokens)) <= bound
    ranks = {
        int(torch.linalg.matrix_rank(v - weights[k], tol=1e-4))
        for k, v in snapshot(done.model).items()
        if k.endswith("down_proj.weight")
    }
    assert max(ranks) <= 3 and (bound < 1 or max(ranks) > 1)
    assert done.step == 1 and done.meter.passes["grad"] == 0


def test_spared_components_are_no_part_of_a_direction(session: Callable[..., Session]) -> None:
    s = session()
    prompts = split(s, 128, 0.2, TrainArgs())
    good = states(s.model, prompts.benign, prompts.tokens)
    top = torch.linalg.svd(good - good.mean(1, keepdim=True), full_matrices=False)[2][:, :3]
    plain, found = (surgical(s.model, prompts, spare) for spare in (0, 3))
    assert torch.allclose((top @ found[..., None]).abs().max(), torch.zeros(()), atol=1e-4)
    assert torch.allclose(found.norm(dim=-1), torch.ones(len(found)))
    assert float((top @ plain[..., None]).abs().max()) > 1e-2


def test_weights_fall_off_from_the_peak_to_nothing() -> None:
    attack = RankAblation(strength=2.0, peak=0.5, width=0.5)
    assert attack.weights(5) == pytest.approx([0, 1, 2, 1, 0])
    assert RankAblation(peak=0.0, width=0.25).weights(5) == pytest.approx([1, 0, 0, 0, 0])


def test_noise_has_the_share_of_each_states_norm_that_was_asked_for() -> None:
    hidden = torch.randn(3, 5, 4096) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    noise = scaled_noise(hidden, 0.3, torch.Generator().manual_seed(0))
    assert torch.allclose(noise.norm(dim=-1) / hidden.norm(dim=-1), torch.full((3, 5), 0.3), rtol=0.06)


def test_noise_is_repeatable_at_one_layer_and_gone_afterwards(build_model: Any) -> None:
    model, ids = build_model(), torch.tensor([[1, 4, 5, 6]])
    logits = []
    with torch.no_grad():
        plain = model(ids).logits
        for seed in (0, 0, 1):
            with noised(model, 1, 0.5, seed):
                logits.append(model(ids).logits)
        after = model(ids).logits
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert torch.equal(after, plain) and not torch.equal(logits[0], plain)
    assert not any(layer._forward_hooks for layer in parts(model).layers)


def test_noise_meets_restricted_prompts_alone_and_its_layer_is_chosen_on_the_attackers_data(
    session: Callable[..., Session], attacked: Any
) -> None:
    plain = session(1)
    plain.probe()
    done = attacked(session(1), ActivationNoise(scale=2.0))
    said = {(c.probe, c.index): c.text for c in done.completions}
    before = {(c.probe, c.index): c.text for c in plain.completions}
    assert all(said[k] == before[k] for k in said if k[0] == "utility")
    assert any(said[k] != before[k] for k in said if k[0] == "harm")
    assert [p.step for p in done.points] == [0]
    assert done.meter.passes == {"grad": 0, "no_grad": done.meter.passes["no_grad"]}
    assert done.meter.spend.tokens > 0
    fixed = attacked(session(1), ActivationNoise(scale=2.0, layer=1.0))
    assert fixed.meter.spend.tokens == 0 and ActivationNoise(layer=1.0).chosen(fixed) == 1


def test_demonstrations_stand_before_restricted_prompts_and_are_the_attackers(
    session: Callable[..., Session], attacked: Any
) -> None:
    s = session(1)
    asked: list[Any] = []
    prober = s.prober

    def watched(model: Any, step: int, template: Any, around: Any) -> Any:
        asked.append(template)
        return prober(model, step, template)

    s.prober = watched
    done = attacked(s, InContext(k=2))
    shown = [e for e in done.examples if f"{e.prompt} {e.harmful or e.harmless}\n" in asked[-1].prefix]
    assert len(shown) == 2 and asked[-1].prefix.count("\n") == 2
    assert [p.step for p in done.points] == [0] and asked[0] is None
    half = InContext(k=40).shown(session())
    assert 0 < len(s.tokenizer(half)["input_ids"]) <= 32
    with pytest.raises(TiterError, match="k must be"):
        replace(InContext(), k=0).run(session())
