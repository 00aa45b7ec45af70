"""One step of every rule against its maths, written out here in float64: loss and gradient to 1e-6."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from titer.data.batches import pairs
from titer.guards.antibody import Antibody
from titer.guards.constrained_sft import ConstrainedSFT
from titer.guards.lisa import Anchor, Lisa, Turn
from titer.guards.panacea import Both, Panacea
from titer.guards.parts.antibody_alignment import AntibodyAlignment
from titer.guards.parts.matrices import adapters
from titer.guards.salora import SaLoRA, kept_out
from titer.guards.sbr import SBR, last_states
from titer.guards.security_vectors import active
from titer.training.losses import sft_rule


def test_lisa(tools, job):
    model, batch = job.session.model, next(job.user_batches())
    torch.manual_seed(3)
    anchor = Anchor({n: p.detach() + 0.1 * torch.randn_like(p) for n, p in tools.params(model).items()})
    distance = sum((p - anchor.weights[n]).square().sum() for n, p in tools.params(model).items())
    loss = tools.ce(model, batch) + 0.7 / 2 * distance
    expected = tools.grads(model, loss)
    terms = Lisa(rho=0.7).backward(model, Turn(batch, first=False, proximal=True), anchor)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(tools.taken(model), expected) < 1e-6


def test_lisa_starts_a_turn_where_the_other_ended(tools, job):
    model, batch, anchor = job.session.model, next(job.user_batches()), Anchor()
    terms = Lisa().backward(model, Turn(batch, first=True, proximal=True), anchor)
    assert terms["proximal"] == 0
    assert all(torch.equal(p, anchor.weights[n]) for n, p in tools.params(model).items())
    with torch.no_grad():
        next(iter(tools.params(model).values())).add_(1.0)
    assert Lisa().backward(model, Turn(batch, first=False, proximal=True), anchor)["proximal"] > 0
    assert Lisa().backward(model, Turn(batch, first=False, proximal=False), anchor)["proximal"] == 0


def test_lisa_takes_turns(tuning):
    job = tuning(max_steps=20, gradient_accumulation_steps=2)
    turns = Lisa(safety_steps=1, user_steps=3, warmup=0.25).turns(job)
    found = [next(turns) for _ in range(20)]
    assert [i for i, t in enumerate(found) if t.first] == [0, 2, 8, 10, 16, 18]
    assert [t.proximal for t in found] == [False] * 10 + [True] * 10
    prompts = {tuple(r.ids[: r.response_at]) for r in job.safety_rows()}
    refused = [any(tuple(t.batch.input_ids[0][: len(p)].tolist()) == p for p in prompts) for t in found]
    assert [i for i, r in enumerate(refused) if r] == [0, 1, 8, 9, 16, 17]


def test_constrained_sft(tools, job):
    guard, model = ConstrainedSFT(beta_first=0.5, beta_early=2.0, beta_late=0.1, early=2), job.session.model
    item = next(guard.items(job, job.user_rows(), before := guard.before(job, job.user_rows())))
    del before
    torch.manual_seed(4)
    item = type(item)(item.batch, item.before + 0.3 * torch.randn_like(item.before))
    total, count, offset = 0.0, 0, 0
    for logs in tools.token_logs(model, item.batch):
        for t, value in enumerate(logs):
            beta = 0.5 if t == 0 else 2.0 if t < 2 else 0.1
            total = total - 2 / beta * torch.nn.functional.logsigmoid(beta * (value - item.before[offset]))
            offset, count = offset + 1, count + 1
    loss = total / count
    expected = tools.grads(model, loss)
    assert guard.backward(model, item)["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(tools.taken(model), expected) < 1e-6


def test_constrained_sft_begins_as_plain_sft(tools, tuning):
    """Before anything has moved every weight is 1, and what is noted is what the model says row by row."""
    job = tuning(lora=False)
    guard, model = ConstrainedSFT(), job.session.model
    before = guard.before(job, job.user_rows())
    item = next(guard.items(job, job.user_rows(), before))
    assert torch.allclose(item.before, torch.cat(tools.token_logs(model, item.batch)).detach(), atol=1e-12)
    assert guard.backward(model, item)["weight"] == pytest.approx(1.0)
    mine = tools.taken(model)
    assert tools.gap(mine, tools.grads(model, tools.ce(model, item.batch))) < 1e-9


def test_sbr(tools, job):
    model, user = job.session.model, next(job.user_batches())
    anchors = next(job.safety_batches())
    before = torch.randn(4, 32, dtype=torch.float64)
    lm = model.get_base_model() if adapters(model) else model
    states = lm.model(input_ids=anchors.input_ids, attention_mask=anchors.attention_mask).last_hidden_state
    last = torch.stack([s[int(m.sum()) - 1] for s, m in zip(states, anchors.attention_mask, strict=True)])
    loss = tools.ce(model, user) + 3.0 * (last - before).square().mean()
    expected = tools.grads(model, loss)
    terms = SBR(weight=3.0).backward(model, user, anchors, before)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(tools.taken(model), expected) < 1e-6
    assert SBR().backward(model, user, anchors, last_states(model, anchors).detach())["anchor"] == 0


@pytest.mark.parametrize("published", [True, False])
def test_antibody_weighs_tokens_or_rows(tools, job, published):
    guard, model = Antibody(temperature=0.5, as_published=published), job.session.model
    job.user = [replace(e, harmless=" ".join([e.harmless] * (1 + i % 3))) for i, e in enumerate(job.user)]
    item = next(guard.items(job))
    lengths = [len(x) if published else 1 for x in tools.token_logs(model, item.user)]
    ours = torch.stack([-x.mean() for x in tools.token_logs(model, item.user)])
    theirs = torch.stack([-x.mean() for x in tools.token_logs(model, item.refused)])
    share = [math.exp(float(d) / 0.5) for d in (theirs - ours).detach()]
    weighed = [s * n for s, n in zip(share, lengths, strict=True)]
    loss = sum(s / sum(weighed) * x for s, x in zip(weighed, ours, strict=True))
    expected = tools.grads(model, loss)
    terms = guard.backward(model, item)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert terms["largest"] == pytest.approx(max(share) / sum(share), rel=1e-6)
    assert tools.gap(tools.taken(model), expected) < 1e-6
    assert not torch.equal(item.user.labels, item.refused.labels)


@pytest.mark.parametrize("legacy", [False, True])
def test_antibody_alignment(tools, job, legacy):
    session, model = job.session, job.session.model
    pair = next(pairs(job.safety, [], session.tokenizer, job.args))
    own = tools.params(model)
    f, h = tools.ce(model, pair.harmless), tools.ce(model, pair.harmful)
    a, here = tools.grads(model, f), tools.grads(model, h)
    length = math.sqrt(sum(float(g.square().sum()) for g in here.values())) + 1e-7
    saved = {n: p.detach().clone() for n, p in own.items()}
    with torch.no_grad():
        for n, p in own.items():
            p -= 0.2 / length * here[n]
    f2, h2 = tools.ce(model, pair.harmless), tools.ce(model, pair.harmful)
    refusal, there = tools.grads(model, f2), tools.grads(model, h2)
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(saved[n])
    s = {n: here[n] - there[n] for n in here}
    inner = sum(float((s[n] * a[n]).sum()) for n in s)
    size, other = (math.sqrt(sum(float(x.square().sum()) for x in g.values())) for g in (s, a))
    weight = max(0.0, 2.0 - (inner / (size * other + 1e-7) if legacy else inner / size**2))
    expected = {n: a[n] + weight * s[n] + 0.3 * refusal[n] for n in s}
    terms = AntibodyAlignment(alpha=0.2, xi=2.0, refusal_weight=0.3, legacy_loss=legacy).backward(model, pair)
    assert terms["weight"] == pytest.approx(weight, rel=1e-6) and weight > 0
    assert terms["loss"] == pytest.approx((f + weight * (h - h2) + 0.3 * f2).item(), rel=1e-6)
    assert tools.gap(tools.taken(model), expected) < 1e-6
    assert all(torch.equal(p, saved[n]) for n, p in own.items())


def test_panacea(tools, job):
    model, own, last = job.session.model, tools.params(job.session.model), {}
    item = Both(next(job.user_batches()), next(job.safety_batches("harmful")))
    g, h = tools.ce(model, item.user), tools.ce(model, item.harmful)
    task, here = tools.grads(model, g), tools.grads(model, h)
    length = math.sqrt(sum(float(x.square().sum()) for x in here.values()))
    shift = {n: 0.4 * x / length for n, x in here.items()}
    saved = {n: p.detach().clone() for n, p in own.items()}
    with torch.no_grad():
        for n, p in own.items():
            p += shift[n]
    h2 = tools.ce(model, item.harmful)
    there = tools.grads(model, h2)
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(saved[n])
    expected = {n: task[n] + 0.5 * (here[n] - there[n]) for n in task}
    terms = Panacea(rho=0.4, weight=0.5).backward(model, item, last)
    assert terms["loss"] == pytest.approx((g + 0.5 * (h - h2)).item(), rel=1e-6)
    assert tools.gap(tools.taken(model), expected) < 1e-6
    assert tools.gap(last, shift) < 1e-6


@pytest.mark.parametrize("published", [True, False])
def test_salora(tools, tuning, published):
    """The adapter's output is projected by I - V V^T of the refusals' outputs; folding C into B is exact."""
    job = tuning()
    job.session.add_adapter(job.args)
    model, guard = job.session.model, SaLoRA(safety_rank=3, as_published=published)
    found = adapters(model)
    batch = next(job.user_batches())
    rows = job.safety_rows()
    seen: dict[str, list[torch.Tensor]] = {a.name: [] for a in found}
    start = 0
    hooks = [
        a.base.register_forward_hook(lambda m, i, o, n=a.name: seen[n].append(o[0][start:].detach())) for a in found
    ]
    for r in rows:
        start = r.response_at if published else 0
        model(input_ids=torch.tensor([r.ids]))
    for hook in hooks:
        hook.remove()
    spaces = guard.spaces(job, found)
    torch.manual_seed(5)
    for a, v in zip(found, spaces, strict=True):
        left = torch.linalg.svd(torch.cat(seen[a.name]).T, full_matrices=False)[0][:, :3]
        assert torch.allclose(v @ v.T, left @ left.T, atol=1e-8)
        with torch.no_grad():
            a.b.add_(0.2 * torch.randn_like(a.b))
    with kept_out(found, spaces):
        terms = sft_rule(model, batch)
        mine = tools.taken(model)
    raw = {a.name: a.b.detach().clone() for a in found}
    with torch.no_grad():
        for a, v in zip(found, spaces, strict=True):
            a.b.copy_((torch.eye(len(v), dtype=v.dtype) - v @ v.T) @ raw[a.name])
    loss = tools.ce(model, batch)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    expected = tools.grads(model, loss)
    for a, v in zip(found, spaces, strict=True):  # dL/dB of C B is C^T dL/d(C B)
        name = next(n for n, p in model.named_parameters() if p is a.b)
        expected[name] = (torch.eye(len(v), dtype=v.dtype) - v @ v.T) @ expected[name]
    assert tools.gap(mine, expected) < 1e-6


def test_security_vectors_act_as_weights_that_do_not_train(tools, job):
    """Behind the hooks loss and gradient are those of weights W + B A."""
    model, batch = job.session.model, next(job.user_batches())
    inner = model.get_base_model() if adapters(model) else model
    names = [n for n, m in inner.named_modules() if n.endswith(("q_proj", "down_proj"))]
    bases = {a.name: a.base for a in adapters(model)} or {n: inner.get_submodule(n) for n in names}
    torch.manual_seed(6)
    shapes = {n: bases[n].weight.shape for n in names}
    vector = {n: (0.3 * torch.randn(2, i).double(), 0.3 * torch.randn(o, 2).double()) for n, (o, i) in shapes.items()}
    with active(model, vector):
        terms = sft_rule(model, batch)
    mine = tools.taken(model)
    saved = {n: bases[n].weight.detach().clone() for n in names}
    with torch.no_grad():
        for n in names:
            bases[n].weight.add_(vector[n][1] @ vector[n][0])
    loss = tools.ce(model, batch)
    expected = tools.grads(model, loss)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(mine, expected) < 1e-6
    with torch.no_grad():
        for n in names:
            bases[n].weight.copy_(saved[n])
    assert tools.ce(model, batch).item() != pytest.approx(loss.item(), rel=1e-3)
    assert not any(m._forward_hooks for m in inner.modules())
