"""MLAC and TAR: the simulated attacker replayed here, step by step, in plain torch."""

import copy
from dataclasses import replace

import pytest
import torch

from titer.defences.mlac import MLAC
from titer.defences.parts.inner_loop import simulate
from titer.defences.tar import TAR
from titer.schema.errors import TiterError


def clone(model):
    return copy.deepcopy(model)


def test_mlac(tools, model):
    pair, twin = tools.pair(), clone(model)
    stability = tools.ce(model, pair.harmless) + 0.5 * tools.ce(model, pair.retain)
    expected, values = tools.grad(model, stability), []
    for batch in (pair.harmful, *pair.extra[:2]):
        loss = tools.ce(twin, batch)
        grads = tools.grad(twin, loss)
        values.append(loss.item())
        with torch.no_grad():
            for n, p in tools.params(twin).items():
                expected[n] = expected[n] - 0.3 * grads[n]
                p -= 0.05 * grads[n]
    defence = MLAC(inner_steps=3, inner_learning_rate=0.05, weight=0.3, retain_weight=0.5)
    terms, grads = tools.step(defence, model, pair)
    assert terms["loss"] == pytest.approx(stability.item() - 0.3 * sum(values), rel=1e-6)
    assert terms["harmful_last"] == pytest.approx(values[-1], rel=1e-6)
    assert tools.gap(grads, expected) < 1e-6


def test_mlac_stops_ascending_at_the_bound(tools):
    from titer.defences.safety_sft import SafetySFT

    model, pair = tools.build(), tools.pair()
    _, grads = tools.step(MLAC(inner_steps=3, max_ascent=0.1), model, pair)
    assert tools.gap(grads, tools.step(SafetySFT(), model, pair)[1]) < 1e-12


def test_tar_takes_gradients_at_every_nth_point(tools):
    pair = replace(tools.pair(), reference=tools.reference(), step=9)
    terms = TAR(inner_steps=3, every=2, objective="ce").backward(tools.build(), pair)
    assert -20 <= terms["tamper"] < 0
    with pytest.raises(Exception, match="needs 8 extra"):
        TAR().backward(tools.build(), pair)
    assert TAR.paper().inner_batches == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_simulated_attack_is_undone_bit_for_bit(tools, dtype):
    model, pair = tools.build(dtype=dtype), tools.pair()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    saved = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    moved = []

    def after(k):
        moved.append(
            sum(float((p.detach() - s[0]).abs().sum()) for p, s in zip(model.parameters(), saved, strict=True))
        )

    simulate(model, pair.extra, 0.05, "adamw", after=after)
    assert len(moved) == 3 and min(moved) > 0
    for p, (value, grad) in zip(model.parameters(), saved, strict=True):
        assert torch.equal(p, value) and torch.equal(p.grad, grad)


@pytest.mark.parametrize(("steps", "total"), [(8, 1.78), (64, 4.44)])
def test_tar_weighs_its_attackers_points_as_the_authors_code_does(steps, total):
    assert sum(TAR(inner_steps=steps).shares().values()) == pytest.approx(total, abs=0.01)
    assert sum(TAR(inner_steps=steps, as_published=False).shares().values()) == pytest.approx(1.0)


def test_tar_of_the_paper_draws_the_attackers_rate_from_three(tools):
    pair, paper = tools.pair(), TAR.paper()
    rates = {paper._rate(replace(pair, step=step)) for step in range(30)}
    assert rates == {2e-6, 2e-5, 4e-5}
    assert TAR()._rate(pair) == 2e-5


def test_tar_without_a_held_out_batch_is_refused(tools):
    pair = replace(tools.pair(), reference=tools.reference(), step=9, held_out=None)
    with pytest.raises(TiterError, match="held_out"):
        TAR(inner_steps=3, every=1).backward(tools.build(), pair)
