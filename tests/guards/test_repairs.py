"""Repairs: the exact formula on the weights, and not one bit where there is nothing to remove."""

from __future__ import annotations

import pytest
import torch

from titer.guards.antidote import Antidote, top
from titer.guards.parts.matrices import adapters, matrices
from titer.guards.safelora import SafeLoRA
from titer.schema.errors import TiterError


def tuned(tuning, lora):
    """A job whose model has been moved away from where it was."""
    job = tuning(lora=lora)
    job.session.add_adapter(job.args)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, p in job.session.model.named_parameters():
            if not lora or "lora_B" in name:
                p.add_(0.1 * torch.randn_like(p))
    return job


def weights(job):
    return {n: p.detach().clone() for n, p in job.session.model.named_parameters()}


def inputs(job, modules):
    """What enters each module on the provider's harmful rows, one unpadded row at a time."""
    seen = {id(m): [] for m in modules}
    hooks = [m.register_forward_pre_hook(lambda m, a: seen[id(m)].append(a[0][0].detach())) for m in modules]
    for row in job.safety_rows("harmful"):
        job.session.model(input_ids=torch.tensor([row.ids]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(seen[id(m)]) for m in modules]


@pytest.mark.parametrize("lora", [True, False])
def test_antidote(tuning, lora):
    job = tuned(tuning, lora)
    model, before = job.session.model, job.before
    if lora:
        found = [(m, torch.zeros_like(m.weight)) for a in adapters(model) for m in (a.down, a.up)]
    else:
        found = [(m.module, before[f"{m.name}.weight"]) for m in matrices(model)]
    expected = []
    for (module, origin), x in zip(found, inputs(job, [m for m, _ in found]), strict=True):
        score = (module.weight - origin).abs() * x.norm(dim=0)
        keep = module.weight.detach().clone()
        for i in range(len(keep)):
            for j in score[i].argsort(descending=True)[: score.shape[1] - int(0.75 * score.shape[1])]:
                keep[i, j] = origin[i, j]
        expected.append(keep)
    untouched = {n: p for n, p in weights(job).items() if "norm" in n or "embed" in n}
    Antidote(ratio=0.25).repair(job)
    assert all(torch.equal(m.weight, e) for (m, _), e in zip(found, expected, strict=True))
    assert all(torch.equal(weights(job)[n], p) for n, p in untouched.items())
    assert 0.15 < job.notes["pruned"] <= 0.25
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("rank", "pruned"), [(16, 2), (8, 1), (4, 1)])
def test_antidote_rounds_what_it_keeps_down_so_that_no_factor_is_spared(rank, pruned):
    assert top(torch.rand(3, rank), 0.1).sum(1).tolist() == [pruned] * 3
    assert not top(torch.rand(3, rank), 0.0).any()
    assert top(torch.rand(3, rank), 1.0).all()


def test_antidote_by_magnitude_needs_no_data(tuning):
    job = tuned(tuning, False)
    job.safety = ()
    first = matrices(job.session.model)[0]
    update = (first.weight - first.of(dict(job.before))).abs()
    gone = update >= update.topk(update.shape[1] - int(0.9 * update.shape[1]), dim=1).values[:, -1:]
    Antidote(score="magnitude").repair(job)
    assert torch.equal(first.weight == first.of(dict(job.before)), gone)
    with pytest.raises(TiterError, match="harmful answer"):
        Antidote().repair(job)


@pytest.mark.parametrize("lora", [True, False])
def test_antidote_with_nothing_to_remove(tuning, lora):
    job = tuned(tuning, lora)
    saved = weights(job)
    Antidote(ratio=0.0).repair(job)
    assert all(torch.equal(p, saved[n]) for n, p in weights(job).items())
    fresh = tuning(lora=lora)  # no update: what is pruned goes back to what it is
    fresh.session.add_adapter(fresh.args)
    saved = weights(fresh)
    Antidote(ratio=0.5).repair(fresh)
    assert all(torch.equal(p, saved[n]) for n, p in weights(fresh).items() if "lora_A" not in n)


@pytest.mark.parametrize("lora", [True, False])
def test_safelora(tuning, lora):
    job = tuned(tuning, lora)
    model, base = job.session.model, dict(job.base.named_parameters())
    if lora:
        found = [(a.name, a.base.weight, (a.scaling * a.b @ a.a).detach()) for a in adapters(model)]
    else:
        found = [
            (m.name, job.before[f"{m.name}.weight"], (m.weight - job.before[f"{m.name}.weight"]).detach())
            for m in matrices(model)
        ]
    cosines, projected = [], []
    for name, aligned, update in found:
        v = (aligned - base[f"{name}.weight"]).detach()
        c = v @ v.T / v.square().sum().sqrt()
        new = c @ update
        cosines.append(float((new * update).sum() / (new.norm() * update.norm())))
        projected.append(new.detach().clone())
    threshold = sorted(cosines)[len(cosines) // 2]
    assert len(set(cosines)) == len(cosines)
    old = [u.detach().clone() for _, _, u in found]
    SafeLoRA(threshold=threshold + 1e-12).repair(job)
    if lora:
        now = [a.scaling * a.b @ a.a for a in adapters(model)]
    else:
        now = [m.weight - job.before[f"{m.name}.weight"] for m in matrices(model)]
    for value, new, was, cosine in zip(now, projected, old, cosines, strict=True):
        assert torch.allclose(value, new if cosine <= threshold else was, rtol=1e-9, atol=1e-12)
    assert job.notes == {"projected": len(cosines) // 2 + 1, "matrices": len(cosines)}


@pytest.mark.parametrize("lora", [True, False])
def test_safelora_with_nothing_to_project(tuning, lora):
    job = tuned(tuning, lora)
    saved = weights(job)
    SafeLoRA(threshold=-2.0).repair(job)
    assert all(torch.equal(p, saved[n]) for n, p in weights(job).items())
    job.base.load_state_dict(job.before)  # alignment changed nothing
    SafeLoRA(threshold=2.0).repair(job)
    assert all(torch.equal(p, saved[n]) for n, p in weights(job).items())
    assert job.notes == {"projected": 0.0, "matrices": 0.0}


def test_safelora_takes_the_lowest_few(tuning):
    job = tuned(tuning, True)
    SafeLoRA(layers=3).repair(job)
    assert job.notes["projected"] == 3
    job.base = None
    with pytest.raises(TiterError, match="--base_model"):
        SafeLoRA().repair(job)
