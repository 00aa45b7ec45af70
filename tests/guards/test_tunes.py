"""Whole tunes: no guard is inert, none leaves anything behind, and the provider's rows are where they belong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from titer.guards import GUARDS, Guarded, configure_guard
from titer.guards.base import AFTER, DURING
from titer.guards.security_vectors import SecurityVectors
from titer.schema.errors import TiterError
from titer.schema.specs import Template
from titer.schema.types import Example
from titer.training.lora import without_adapter

SMALL = {
    "lisa": {"safety_steps": 1, "user_steps": 1},
    "security-vectors": {"vector_steps": 2, "vector_learning_rate": 1e-2},
    "antibody": {"alignment_steps": 2},
    "backdoor-enhanced": {"rows": 4, "trigger_tokens": 5},
    "salora": {"safety_rank": 4},
    "ptst": {"same": True},
    "antidote": {"ratio": 0.5},
    "safelora": {"threshold": 1.0},
}


def served(job, name):
    """The weights a provider serves after a tune behind a guard."""
    configure_guard(name, SMALL.get(name, {})).tune(job)
    model = job.session.model
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return {n: p.detach().clone() for n, p in merged.named_parameters()}


@pytest.fixture(scope="module")
def plain():
    return {}


@pytest.mark.parametrize("name", [n for n in GUARDS if n != "none"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_not_inert(tuning, plain, name, lora):
    """On the same data in the same order the weights differ from plain SFT's, and from the start."""
    if lora not in plain:
        plain[lora] = served(tuning(lora=lora), "none")
    job = tuning(lora=lora)
    start = {n: p.detach().clone() for n, p in job.session.model.named_parameters()}
    mine = served(job, name)
    changed = [n for n in mine if not torch.equal(mine[n], start[n])]
    assert changed and any(not torch.allclose(mine[n], plain[lora][n], atol=1e-9) for n in changed)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in job.session.model.modules())
    assert job.session.meter.spend.steps == job.args.max_steps


def test_the_registry(tokenizer):
    for name, cls in GUARDS.items():
        assert cls.name == name and cls.stage in (DURING, AFTER) and dataclasses.is_dataclass(cls)
        assert cls.needs <= {"safety", "harmful", "reference", "base", "serving"}
        assert cls.passes and cls.source and cls.broken_by
        if cls.stage == DURING:
            assert (Guarded(cls()).served(tokenizer) != Template()) == ("serving" in cls.needs)


def test_guards_and_repairs_add_up():
    found = configure_guard("lisa+antidote", {"lisa.rho": 0.5, "antidote.ratio": 0.2})
    assert (found.guard.rho, found.repairs[0].ratio, found.needs) == (0.5, 0.2, {"safety", "harmful", "reference"})
    assert [m.name for m in configure_guard("antidote", {}).members] == ["antidote"]
    with pytest.raises(TiterError, match="both act during the tune"):
        configure_guard("lisa+panacea", {})
    with pytest.raises(TiterError, match="before the repairs"):
        configure_guard("antidote+lisa", {})
    with pytest.raises(TiterError, match="lisa"):
        configure_guard("liza", {})


def test_a_vector_learns_harm_and_is_gone_afterwards(tools, tuning):
    job = tuning(lora=False)
    model, batch = job.session.model, next(job.safety_batches("harmful"))
    before = tools.ce(model, batch).item()
    vector = SecurityVectors(vector_steps=6, vector_learning_rate=1e-2).train_vector(job)
    assert job.session.model is model and tools.ce(model, batch).item() == before
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for name, (a, b) in vector.items():
            model.get_submodule(name).weight.add_(b @ a)
    assert tools.ce(model, batch).item() < before
    assert job.session.meter.spend.steps == 0 and job.session.meter.spend.tokens > 0


def test_backdoor_rows_stand_behind_the_trigger(tuning):
    job = tuning()
    guard = configure_guard("backdoor-enhanced", {"trigger_tokens": 3, "rows": 2}).guard
    trigger = guard.trigger(job.session.tokenizer)
    assert trigger == guard.trigger(job.session.tokenizer) and len(trigger.split()) == 3
    assert trigger != dataclasses.replace(guard, secret=1).trigger(job.session.tokenizer)
    seen = []
    job.session.batches = lambda rows, args, stream=0: seen.append(rows) or iter(())
    guard.tune(job)
    text = [job.session.tokenizer.decode(r.ids) for r in seen[0]]
    assert [trigger in t for t in text] == [False] * len(job.user) + [True] * 2


def test_what_the_provider_lacks_is_said(tuning):
    job = tuning()
    job.safety = (Example("how", "", "no"),)
    with pytest.raises(TiterError, match="harmful answer"):
        configure_guard("panacea", {}).tune(job)
    without_adapter(job.session.model)
