"""What holds for every defence: passes, nothing left behind, determinism, bf16, checkpointing, families, not inert."""

import dataclasses
import math

import pytest
import torch

from titer.defences import DEFENCES, configure
from titer.defences.base import need_extra, need_reference, need_retain
from titer.schema.errors import TiterError

SMALL = {
    "tar": {"inner_steps": 3, "every": 1, "mapping": 0.0},
    "mlac": {"inner_steps": 3},
    "targeted-lat": {"inner_steps": 2},
    "t-vaccine": {"share": 0.7},
}
TRAINED = [n for n in DEFENCES if n != "lox"]
# forward and backward passes of the model under test with these settings and retain data; reference forwards
PASSES = {
    "safety-sft": (2, 2, 0),
    "gradient-ascent": (2, 2, 0),
    "adversarial-loss": (3, 3, 0),
    "repnoise": (3, 3, 0),
    "vaccine": (3, 3, 0),
    "t-vaccine": (4, 4, 0),
    "booster": (4, 4, 0),
    "tar": (7, 7, 1),
    "mlac": (5, 5, 0),
    "seam": (6, 6, 0),
    "ctrap": (3, 3, 0),
    "triplet": (2, 2, 2),
    "rmu": (2, 2, 1),
    "circuit-breakers": (2, 2, 2),
    "targeted-lat": (4, 4, 0),
    "deep-alignment": (2, 2, 0),
    "sdd": (2, 2, 0),
    "extended-refusal": (2, 2, 0),
    "undo": (1, 1, 1),
    "clean-room": (1, 1, 1),
    "art": (7, 2, 0),
}


def make(name):
    return configure(name, SMALL.get(name, {}))


@pytest.fixture
def pair(tools):
    return dataclasses.replace(tools.pair(), reference=tools.reference())


def test_the_registry_is_complete_and_names_agree():
    assert set(PASSES) == set(TRAINED)
    for name, cls in DEFENCES.items():
        defence = cls()
        assert defence.name == name and defence.stage == "before release"
        assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
        assert defence.needs <= {"harmful", "harmless", "retain", "reference", "extra", "held-out", "base"}
        assert defence.passes and defence.source and defence.broken_by and defence.inner_batches >= 0
        assert (defence.inner_batches > 0) == ("extra" in defence.needs)


@pytest.mark.parametrize("name", TRAINED)
def test_passes(tools, pair, name):
    """A forward pass is a call of the first layer, a backward pass one that a gradient came back to, in any layer."""
    model, forwards, backwards, references = tools.build(), [], set(), []

    def count(module, args, output):
        if module is model.model.layers[0]:
            forwards.append(len(forwards))
        if output.requires_grad:
            output.register_hook(lambda grad, at=forwards[-1]: backwards.add(at))

    for layer in model.model.layers:
        layer.register_forward_hook(count)
    pair.reference.register_forward_hook(lambda m, a, o: references.append(1))
    make(name).backward(model, pair)
    assert (len(forwards), len(backwards), len(references)) == PASSES[name]


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_leaves_weights_hooks_and_flags_as_they_were(tools, pair, name):
    model = tools.build(dtype=torch.float32)
    pair = dataclasses.replace(pair, reference=pair.reference.float())
    saved = [p.detach().clone() for p in model.parameters()]
    terms = make(name).backward(model, pair)
    assert all(torch.equal(p, s) for p, s in zip(model.parameters(), saved, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(math.isfinite(v) for v in terms.values()) and "loss" in terms
    assert all(p.grad is None for p in pair.reference.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_added_and_the_same_every_time(tools, pair, name):
    model, defence = tools.build(), make(name)
    terms, once = tools.step(defence, model, pair)
    torch.manual_seed(123)
    model.zero_grad()
    assert defence.backward(model, pair) == terms
    defence.backward(model, pair)
    twice = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert tools.gap(twice, {n: 2 * once[n] for n in twice}) < 1e-9


@pytest.mark.parametrize("name", TRAINED)
def test_bf16_full_and_lora_stay_finite(tools, pair, name):
    pair = dataclasses.replace(pair, reference=pair.reference.bfloat16())
    for lora in (False, True):
        terms, grads = tools.step(make(name), tools.build(dtype=torch.bfloat16, lora=lora), pair)
        assert all(math.isfinite(v) for v in terms.values())
        assert all(bool(torch.isfinite(g).all()) for g in grads.values())
        assert any(bool(g.any()) for g in grads.values())


@pytest.mark.parametrize("name", TRAINED)
def test_gradient_checkpointing_changes_nothing(tools, pair, name):
    plain, expected = tools.step(make(name), tools.build(), pair)
    model = tools.build()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    terms, grads = tools.step(make(name), model, pair)
    assert terms == pytest.approx(plain, rel=1e-6)
    assert tools.gap(grads, expected) < 1e-6


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt-neox", "phi"])
def test_families(tools, family):
    """Every hook site exists and carries a gradient in every architecture."""
    pair = dataclasses.replace(tools.pair(), reference=tools.build(family).requires_grad_(False))
    for name in ("repnoise", "vaccine", "rmu", "art", "targeted-lat", "tar"):
        model = tools.build(family)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
        terms, grads = tools.step(make(name), model, pair)
        assert math.isfinite(terms["loss"]) and any(bool(g.any()) for g in grads.values()), name


@pytest.mark.parametrize("name", [n for n in TRAINED if n not in ("sdd", "extended-refusal")])
def test_a_short_run_is_not_inert(tools, pair, name):
    """Weights move, the method's own loss falls, and (safety SFT aside) the model is not the one safety SFT makes."""
    torch.manual_seed(0)
    model, baseline, defence = tools.build(), tools.build(), make(name)
    start = [p.detach().clone() for p in model.parameters()]
    first = defence.backward(model, pair)["loss"]
    for trained, rule in ((model, defence), (baseline, configure("safety-sft", {}))):
        optimiser = torch.optim.SGD(trained.parameters(), 0.003 if name == "rmu" else 0.02)
        for _ in range(4):
            optimiser.zero_grad()
            rule.backward(trained, pair)
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimiser.step()
    assert defence.backward(model, pair)["loss"] < first
    assert any(not torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))
    same = all(torch.equal(p, q) for p, q in zip(model.parameters(), baseline.parameters(), strict=True))
    assert same == (name == "safety-sft")


def test_missing_parts_of_a_pair_are_named(tools):
    pair = dataclasses.replace(tools.pair(), retain=None, extra=())
    for need, what in ((need_retain, "benign data"), (need_reference, "starting model")):
        with pytest.raises(TiterError, match=f"x: needs.*{what}"):
            need(pair, "x")
    with pytest.raises(TiterError, match="x: needs 2 extra"):
        need_extra(pair, "x", 2)


@pytest.mark.parametrize("name", ["booster", "ctrap", "seam", "mlac", "tar"])
def test_shifted_weights_are_seen_under_autocast(tools, pair, name):
    """Autocast caches its casts of the weights: a stale cache would show every defence the unshifted model."""
    options = {"booster": {"alpha": 1.0}, "ctrap": {"alpha": 1.0}, "seam": {"eps": 0.1, "weight": 1.0}}
    options |= {"mlac": {"inner_steps": 3, "inner_learning_rate": 0.2}}
    options |= {"tar": {"inner_steps": 3, "every": 1, "mapping": 0.0, "inner_learning_rate": 0.05, "weight": 1.4}}
    pair = dataclasses.replace(pair, reference=pair.reference.float())
    model, defence = tools.build(dtype=torch.float32, lora=True), configure(name, options[name])
    exact, expected = tools.step(defence, model, pair)
    with torch.autocast("cpu", torch.bfloat16):
        rough, grads = tools.step(defence, model, pair)
    assert rough == pytest.approx(exact, rel=0.05, abs=0.02)
    assert tools.gap(grads, expected) < 0.4  # Adam and differences of gradients amplify the rounding of bf16
