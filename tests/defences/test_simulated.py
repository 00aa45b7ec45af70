"""MLAC and TAR: the simulated attacker replayed here, step by step, in plain torch."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from titer.defences.mlac import MLAC
from titer.defences.parts.inner_loop import simulate
from titer.defences.tar import TAR
from titer.training.gradients import generator


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


@pytest.mark.parametrize("objective", ["entropy", "ce"])
def test_tar_tampering(tools, model, objective):
    pair, twin = replace(tools.pair(), reference=tools.reference(), step=9), clone(model)
    params = list(tools.params(twin).values())
    adam = torch.optim.AdamW(params, lr=0.01, weight_decay=0.0)
    tamper, total, norm = {}, 0.0, sum(math.exp(0.5 * (k - 3)) for k in (1, 2, 3))
    for k, batch in enumerate(pair.extra, start=1):
        adam.zero_grad()
        tools.ce(twin, batch).backward()
        adam.step()
        share = math.exp(0.5 * (k - 3)) / norm
        if objective == "ce":
            loss = -tools.ce(twin, pair.harmful)
        else:
            h = pair.harmful
            logits = twin(input_ids=h.input_ids, attention_mask=h.attention_mask).logits[:, :-1]
            p = logits.softmax(-1)[h.labels[:, 1:] != -100]
            loss = (p * p.log()).sum(-1).mean()
        for n, g in tools.grad(twin, loss).items():
            tamper[n] = tamper.get(n, 0) + share * g
        total += share * loss.item()
    retain, tokens, drift = 0.0, 0, 0.0
    for b in (pair.harmless, pair.retain):
        n = int((b.labels != -100).sum())
        mask = b.labels != -100
        moved = [
            x[mask] - y[mask] for x, y in zip(tools.hidden(model, b), tools.hidden(pair.reference, b), strict=True)
        ]
        drift = drift + sum(m.norm(dim=-1).sum() for m in moved) / len(moved)
        retain, tokens = retain + n * tools.ce(model, b), tokens + n
    keep = (retain + drift) / tokens
    g_keep = tools.grad(model, keep)
    defence = TAR(
        inner_steps=3, every=1, inner_learning_rate=0.01, weight=2.0, retain_weight=0.5, decay=0.5, objective=objective
    )
    terms, grads = tools.step(defence, model, pair)
    assert terms["loss"] == pytest.approx(2.0 * total + 0.5 * keep.item(), rel=1e-6)
    assert tools.gap(grads, {n: 2.0 * tamper[n] + 0.5 * g_keep[n] for n in g_keep}) < 1e-6


def test_tar_mapping_phase(tools, model):
    pair = replace(tools.pair(), reference=tools.reference(), step=1, retain=None)
    table = torch.randn(31, 16, generator=generator(pair.seed, 0, "cpu", "tar"))
    mask = pair.harmful.labels != -100
    target = table[pair.harmful.input_ids[mask]].double()
    loss = 0.0
    for h in tools.hidden(model, pair.harmful):
        x = h[mask]
        loss = loss + (1 - ((x * target).sum(-1) / (x.norm(dim=-1) * target.norm(dim=-1))).abs()).mean()
    loss = loss + 0.5 * tools.ce(model, pair.harmless)
    terms, grads = tools.step(TAR(retain_weight=0.5), model, pair)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6) and "tamper" not in terms
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-6


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
