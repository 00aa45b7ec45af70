"""Edits of the weights without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from titer.attacks.merge_with_base import MergeWithBase
from titer.attacks.parts.edits import matrices, pruned, rounded
from titer.attacks.prune import Prune
from titer.attacks.quantise import Quantise
from titer.models.load import load_model
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.training.session import Session


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channel", [0, 1])
def test_rounding_keeps_to_its_levels_and_errs_by_half_a_step_at_most(bits: int, channel: int) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    found = rounded(weight, bits, channel)
    step = weight.abs().amax(1 - channel, keepdim=True) / (2 ** (bits - 1) - 1)
    assert float(((found - weight).abs() / step).max()) <= 0.5 + 1e-4
    for row in found.movedim(channel, 0):
        assert len(row.unique()) <= 2**bits - 1
    assert torch.equal(rounded(torch.zeros(2, 3), bits, channel), torch.zeros(2, 3))


def test_pruning_takes_the_smallest() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3], [-0.4, 0.5, -0.6]])
    assert pruned(weight, 0.5).tolist() == [[0.0, 0.0, 0.0], [weight[1, 0], weight[1, 1], weight[1, 2]]]
    assert torch.equal(pruned(weight, 0.0), weight)


def test_every_decoder_matrix_is_edited_and_nothing_else(session: Callable[..., Session], attacked: Any) -> None:
    for attack in (Quantise(bits=3), Prune(share=0.3)):
        s = session()
        before, inside = snapshot(s.model), {id(m.weight) for m in matrices(s.model)}
        done = attacked(s, attack)
        for name, p in done.model.named_parameters():
            assert torch.equal(p, before[name]) != (id(p) in inside), name
        assert len(inside) == 14
        assert [(p.step, p.spend.tokens) for p in done.points] == [(0, 0), (1, 0)]


def test_the_line_through_the_base_model(session: Callable[..., Session], attacked: Any, toy_model: str) -> None:
    base = dict(load_model(toy_model)[0].named_parameters())
    for scale in (1.0, 0.0, -0.5):
        s = session()
        before = snapshot(s.model)
        done = attacked(s, MergeWithBase(base=toy_model, scale=scale))
        for name, p in done.model.named_parameters():
            expected = base[name] + scale * (before[name] - base[name])
            assert torch.allclose(p, expected, atol=1e-6), name


def test_training_may_follow(session: Callable[..., Session], attacked: Any) -> None:
    done = attacked(session(3), Quantise(then_sft=True))
    assert done.step == done.meter.spend.steps == 3


def test_what_cannot_be_done_says_what_to_do(session: Callable[..., Session], toy_data: str, tmp_path: Any) -> None:
    with pytest.raises(TiterError, match=r"attack_args\.base"):
        MergeWithBase().run(session())
    with pytest.raises(TiterError, match="bits"):
        Quantise(bits=1).run(session())
    with pytest.raises(TiterError, match="share"):
        Prune(share=1.0).run(session())


def test_another_architecture_is_no_base(
    session: Callable[..., Session], build_model: Any, tokenizer: Any, tmp_path: Any
) -> None:
    build_model(hidden_size=16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TiterError, match="not the same model"):
        MergeWithBase(base=str(tmp_path)).run(session())
