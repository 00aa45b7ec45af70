"""Vaccine, T-Vaccine, Booster, CTRAP and SEAM against their maths written out with functional calls."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from titer.defences import configure
from titer.defences.booster import Booster
from titer.defences.ctrap import CTRAP
from titer.defences.seam import SEAM
from titer.defences.t_vaccine import TVaccine
from titer.defences.vaccine import Vaccine
from titer.schema.errors import TiterError


def base_of(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attention_gradients(model, batch, tools):
    seen = []
    hooks = [x.self_attn.register_forward_hook(lambda m, a, o: seen.append(o[0])) for x in base_of(model).model.layers]
    loss = tools.ce(model, batch)
    for h in hooks:
        h.remove()
    return torch.autograd.grad(loss, seen)


def ce_shifted(model, batch, shifts, tools):
    hooks = [
        base_of(model).model.layers[i].self_attn.register_forward_hook(lambda m, a, o, e=e: (o[0] + e, *o[1:]))
        for i, e in shifts.items()
    ]
    loss = tools.ce(model, batch)
    for h in hooks:
        h.remove()
    return loss


def test_vaccine(tools, model):
    pair = tools.pair()
    g = attention_gradients(model, pair.harmless, tools)
    size = torch.cat([x.flatten() for x in g]).norm() + 1e-7
    loss = ce_shifted(model, pair.harmless, {i: 1.5 * x / size for i, x in enumerate(g)}, tools)
    terms, grads = tools.step(Vaccine(rho=1.5, retain_weight=0), model, pair)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert terms["stability"] == pytest.approx(tools.ce(model, pair.harmless).item(), rel=1e-6)
    assert terms["perturbed"] > terms["stability"]
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-6


def test_t_vaccine_draws_in_proportion_to_harmful_gradients(tools):
    """Over many draws of one layer the frequencies follow |dh/de_l|."""
    from dataclasses import replace

    model, pair = tools.build(), tools.pair()
    sizes = torch.tensor([float(g.norm()) for g in attention_gradients(model, pair.harmful, tools)])
    defence, counts = TVaccine(share=0.34, draw_every=1, retain_weight=0), torch.zeros(3)
    probe = attention_gradients(model, pair.harmful, tools)
    for step in range(1500):
        counts[defence._draw(probe, replace(pair, step=step))[0]] += 1
    assert torch.allclose(counts / 1500, sizes / sizes.sum(), atol=0.05)


def step_down(tools, model, batch, alpha):
    params = tools.params(model)
    grads = tools.grad(model, tools.ce(model, batch))
    size = torch.cat([g.flatten() for g in grads.values()]).norm() + 1e-7
    return {n: (p - alpha * grads[n] / size).detach().requires_grad_() for n, p in params.items()}, grads


def test_booster(tools, model):
    pair = tools.pair()
    there, here = step_down(tools, model, pair.harmful, 0.3)
    after = tools.ce_at(model, there, pair.harmful)
    g_after = dict(zip(there, torch.autograd.grad(after, list(there.values())), strict=True))
    f = tools.ce(model, pair.harmless) + 0.5 * tools.ce(model, pair.retain)
    g_f = tools.grad(model, f)
    expected = {n: g_f[n] + 2.0 * (here[n] - g_after[n]) for n in g_f}
    terms, grads = tools.step(Booster(weight=2.0, alpha=0.3, retain_weight=0.5), model, pair)
    drop = tools.ce(model, pair.harmful) - after
    assert terms["loss"] == pytest.approx((f + 2.0 * drop).item(), rel=1e-6)
    assert tools.gap(grads, expected) < 1e-6


def test_ctrap(tools, model):
    pair = tools.pair()
    there, _ = step_down(tools, model, pair.harmful, 0.3)

    def general(score):
        """Token-weighted mean of a per-token loss over the harmless and the retain batch."""
        total = count = 0
        for b in (pair.harmless, pair.retain):
            value, n = score(b), int((b.labels[:, 1:] != -100).sum())
            total, count = total + value * n, count + n
        return total / count

    def collapse(b):
        inputs = {"input_ids": b.input_ids, "attention_mask": b.attention_mask}
        logits = torch.func.functional_call(model, there, (), inputs).logits[:, :-1]
        return -logits.log_softmax(-1)[..., 9][b.labels[:, 1:] != -100].mean()

    stay, trap = general(lambda b: tools.ce(model, b)), general(collapse)
    g_trap = dict(zip(there, torch.autograd.grad(trap, list(there.values())), strict=True))
    g_stay = tools.grad(model, stay)
    terms, grads = tools.step(CTRAP(weight=0.7, alpha=0.3, collapse_token=9), model, pair)
    assert terms["loss"] == pytest.approx((stay + 0.7 * trap).item(), rel=1e-6)
    assert tools.gap(grads, {n: g_stay[n] + 0.7 * g_trap[n] for n in g_stay}) < 1e-6


def seam_parts(tools, model, pair):
    lm = base_of(model)
    stability, seen = tools.ce(model, pair.harmless), []
    hooks = [x.register_forward_pre_hook(lambda m, a: seen.append(a[0])) for x in lm.model.layers]
    hooks.append(lm.model.norm.register_forward_pre_hook(lambda m, a: seen.append(a[0])))
    output = tools.ce(model, pair.harmful)
    for h in hooks:
        h.remove()
    labels = pair.harmful.labels[:, 1:].flatten()
    lens = [lm.lm_head(lm.model.norm(s))[:, :-1].flatten(0, 1) for s in seen]
    layered = (output + sum(cross_entropy(x, labels, ignore_index=-100) for x in lens)) / len(seen)
    return stability, layered


def flat(grads):
    return torch.cat([g.flatten() for g in grads])


def test_seam_formula(tools, model):
    pair, eps = tools.pair(), 1e-3
    stability, layered = seam_parts(tools, model, pair)
    params = tools.params(model)
    harm = tools.grad(model, tools.ce(model, pair.harmful))
    good = tools.grad(model, tools.ce(model, pair.retain))
    na, nb = flat(harm.values()).norm(), flat(good.values()).norm()
    a, b = {n: g / na for n, g in harm.items()}, {n: g / nb for n, g in good.items()}
    c = flat(a.values()) @ flat(b.values())

    def at(direction, batch):
        moved = {n: (p + eps * direction[n]).detach().requires_grad_() for n, p in params.items()}
        return dict(
            zip(moved, torch.autograd.grad(tools.ce_at(model, moved, batch), list(moved.values())), strict=True)
        )

    g_b = at({n: a[n] - c * b[n] for n in a}, pair.retain)
    g_a = at({n: b[n] - c * a[n] for n in a}, pair.harmful)
    benign = tools.ce(model, pair.retain)
    plain = tools.grad(model, 0.8 * stability - torch.log(1 + layered) + 0.3 * benign)
    expected = {n: plain[n] + 0.5 / eps * ((g_b[n] - good[n]) / nb + (g_a[n] - harm[n]) / na) for n in plain}
    terms, grads = tools.step(SEAM(stability_weight=0.8, weight=0.5, eps=eps, retain_weight=0.3), model, pair)
    loss = 0.8 * stability - torch.log(1 + layered) + 0.5 * c + 0.3 * benign
    assert terms["cosine"] == pytest.approx(c.item(), rel=1e-6)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(grads, expected) < 1e-6


def test_seam_shifted_gradients_are_the_cosines_gradient(tools):
    """For small eps the two shifts give what differentiating the cosine twice gives."""
    import transformers

    model, pair = tools.build(), tools.pair()
    model.set_attn_implementation("eager")
    assert isinstance(model, transformers.LlamaForCausalLM)
    params = list(model.parameters())
    a, b = (
        flat(torch.autograd.grad(tools.ce(model, x), params, create_graph=True)) for x in (pair.harmful, pair.retain)
    )
    cosine = a @ b / (a.norm() * b.norm())
    exact = dict(zip(tools.params(model), torch.autograd.grad(cosine, params), strict=True))
    alone = SEAM(stability_weight=0, ascent_weight=0, weight=1.0, eps=1e-3, retain_weight=0)
    _, grads = tools.step(alone, model, pair)
    assert tools.gap(grads, exact) < 1e-2  # the model's norms run in fp32: a smaller eps drowns in rounding


@pytest.mark.parametrize(
    "defence", [Booster(weight=0), CTRAP(weight=0), SEAM(weight=0, ascent_weight=0)], ids=lambda d: d.name
)
def test_weight_zero_leaves_safety_sft_and_the_weights_alone(tools, defence):
    from dataclasses import replace

    from titer.defences.safety_sft import SafetySFT

    model, pair = tools.build(), replace(tools.pair(), retain=None)
    saved = [p.detach().clone() for p in model.parameters()]
    _, grads = tools.step(defence, model, pair)
    _, expected = tools.step(SafetySFT(), model, pair)
    assert all(torch.equal(grads[n], expected[n]) for n in grads)
    assert all(torch.equal(p, s) for p, s in zip(model.parameters(), saved, strict=True))


def test_t_vaccine_on_every_layer_is_refused_as_vaccine(tools):
    with pytest.raises(TiterError, match="between 0 and 1"):
        configure("t-vaccine", {"share": 1.0})
    defence = TVaccine()
    assert [defence._count(layers) for layers in (2, 3, 8, 32)] == [1, 1, 2, 8]
    with pytest.raises(TiterError, match="use vaccine"):
        defence._count(1)
