"""RMU, circuit breakers, CRL/triplet, ART and targeted LAT against their maths."""

import math
from dataclasses import replace

import pytest
import torch

from titer.defences.art import ART
from titer.defences.rmu import RMU
from titer.defences.targeted_lat import TargetedLAT
from titer.training.gradients import generator


def cos(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def answers(tools, model, batch, layers):
    mask = batch.labels != -100
    states = tools.hidden(model, batch)
    return torch.stack([states[i][mask] for i in layers])


@pytest.fixture
def pair(tools):
    return replace(tools.pair(step=4, steps=10), reference=tools.reference())


def test_rmu(tools, model, pair):
    u = torch.rand(16, generator=generator(pair.seed, 0, "cpu", "rmu"), dtype=torch.float64)
    states = answers(tools, model, pair.harmful, [1])
    forget = ((states - 3.0 * u / u.norm()) ** 2).mean()
    gap = answers(tools, model, pair.retain, [1]) - answers(tools, pair.reference, pair.retain, [1])
    loss = forget + 2.0 * (gap**2).mean()
    terms, grads = tools.step(RMU(steering=3.0, retain_weight=2.0, depth=0.5), model, pair)
    expected = {
        n: g if "down_proj" in n and ("layers.0." in n or "layers.1." in n) else torch.zeros_like(g)
        for n, g in tools.grad(model, loss).items()
    }
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(grads, expected) < 1e-6


def test_rmu_without_a_trainable_projection_is_refused(tools, pair):
    import peft

    from titer.schema.errors import TiterError

    model = peft.get_peft_model(tools.build(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(TiterError, match="no trainable parameter"):
        RMU().backward(model, pair)


def ablated_ce(tools, model, batch, layer, r):
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    cut = torch.eye(16, dtype=torch.float64) - 0.9 * torch.outer(r, r)
    block = lm.model.layers[layer]
    hooks = [
        block.self_attn.register_forward_hook(lambda m, a, o: (o[0] @ cut, *o[1:])),
        block.mlp.register_forward_hook(lambda m, a, o: o @ cut),
    ]
    loss = tools.ce(model, batch)
    for h in hooks:
        h.remove()
    return loss


def test_art(tools, model, pair):
    directions = []
    for layer in range(3):
        means = []
        for batch in (pair.harmful, pair.retain):
            states = tools.hidden(model, batch)[layer]
            ends = [int((row != -100).nonzero()[0]) - 1 for row in batch.labels]
            means.append(torch.stack([states[i, e] for i, e in enumerate(ends)]).mean(0))
        r = (means[0] - means[1]).detach()
        directions.append(r / r.norm())
    losses = [ablated_ce(tools, model, pair.harmful, i, r).item() for i, r in enumerate(directions)]
    worst = losses.index(min(losses))
    stability = ablated_ce(tools, model, pair.harmless, worst, directions[worst])
    harmful = ablated_ce(tools, model, pair.harmful, worst, directions[worst])
    loss = stability - 0.7 * torch.log(1 + harmful)
    terms, grads = tools.step(ART(strength=0.9, ascent_weight=0.7), model, pair)
    assert terms["layer"] == worst
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-6


def test_art_hooks_equal_editing_the_projections(tools):
    """Cutting the direction from the outputs is W - s r r^T W on o_proj and down_proj."""
    from titer.defences.art import ablated
    from titer.models.parts import parts

    model, batch = tools.build(), tools.pair().harmful
    r = torch.randn(16, dtype=torch.float64)
    r = r / r.norm()
    with ablated(parts(model), 1, r, 1.0):
        hooked = tools.ce(model, batch).item()
    with torch.no_grad():
        for w in (model.model.layers[1].self_attn.o_proj.weight, model.model.layers[1].mlp.down_proj.weight):
            w -= torch.outer(r, r) @ w
    assert tools.ce(model, batch).item() == pytest.approx(hooked, rel=1e-9)


def lat_losses(model, pair, shifts):
    """(attack loss, defence loss) under shifts {0: embedding, i+1: layer i}, from separate passes over the texts."""
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    sides = {}
    for name, batch in (("harmful", pair.harmful), ("harmless", pair.harmless)):
        width = batch.input_ids.shape[1]
        sites = {0: lm.model.embed_tokens, **{i + 1: x for i, x in enumerate(lm.model.layers)}}
        hooks = [sites[i].register_forward_hook(lambda m, a, o, d=d[:, :width]: o + d) for i, d in shifts.items()]
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        for h in hooks:
            h.remove()
        at = batch.labels[:, 1:] != -100
        p = logits.softmax(-1)[at].gather(1, batch.labels[:, 1:][at][:, None]).squeeze(1)
        sides[name] = (-p.log().mean(), -(1 - p).log().mean())
    return sides["harmful"][0] + sides["harmless"][1], sides["harmless"][0] + sides["harmful"][1]


@pytest.mark.parametrize("radius", [6.0, 0.02])
def test_targeted_lat(tools, model, pair, radius):
    width = max(pair.harmful.input_ids.shape[1], pair.harmless.input_ids.shape[1])
    on = torch.zeros(4, width, 1, dtype=torch.float64)
    for i, row in enumerate(pair.harmful.labels):
        on[i, : int((row != -100).nonzero()[0])] = 1
    draw = generator(pair.seed, pair.step, "cpu", "lat")
    sites = (0, 2, 3)  # the embedding and the outputs of layers 1 and 2
    shifts = {i: (1e-3 * torch.randn(4, width, 16, generator=draw)).double().requires_grad_() for i in sites}
    adam = torch.optim.Adam(shifts.values(), lr=0.05)
    for _ in range(3):
        attack, _ = lat_losses(model, pair, {i: d * on for i, d in shifts.items()})
        adam.zero_grad()
        attack.backward(inputs=list(shifts.values()))
        adam.step()
        with torch.no_grad():
            for d in shifts.values():
                d *= (radius / d.norm(dim=-1, keepdim=True)).clamp(max=1)
    found = {i: (d * on).detach() for i, d in shifts.items()}
    _, outer = lat_losses(model, pair, found)
    loss = 0.5 * outer + 1.5 * tools.ce(model, pair.retain)
    defence = TargetedLAT(inner_steps=3, radius=radius, depths=(0.4, 0.9))
    terms, grads = tools.step(defence, model, pair)
    assert terms["attack"] == pytest.approx(attack.item(), rel=1e-6)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-6
    assert all(float(d.norm(dim=-1).max()) <= radius * (1 + 1e-9) for d in found.values())


def test_lat_away_is_finite_for_a_certain_token():
    from titer.defences.targeted_lat import _toward_away

    certain = torch.zeros(3, requires_grad=True)
    _, away = _toward_away(certain)
    away.backward()
    assert away.item() <= 14 and math.isfinite(float(certain.grad.abs().sum()))
