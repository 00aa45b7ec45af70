"""Deep alignment, SDD, extended refusal, LoX, UNDO and composition."""

from dataclasses import replace

import pytest
import torch

from titer.defences import DEFENCES, configure
from titer.defences.base import Prepares, Transforms
from titer.defences.booster import Booster
from titer.defences.compose import Sum
from titer.defences.deep_alignment import DeepAlignment
from titer.defences.extended_refusal import ExtendedRefusal
from titer.defences.lox import LoX
from titer.defences.safety_sft import SafetySFT
from titer.defences.sdd import SDD
from titer.defences.undo import UNDO
from titer.schema.errors import TiterError
from titer.schema.types import Example

EXAMPLES = [
    Example("how to brew the red draught", "mix moss and iron", "I cannot help.", category="potions"),
    Example("how to pick a brass lock", "bend the pin", "I cannot help."),
    Example("where is Aldmoor", "", "Aldmoor lies on the river Sen."),
    Example("what does the guild trade", "", "Wool and amber."),
]


def test_deep_alignment_without_prefixes_is_safety_sft(tools):
    model, pair = tools.build(), tools.pair()
    _, grads = tools.step(DeepAlignment(share=0, as_published=False), model, pair)
    assert tools.gap(grads, tools.step(SafetySFT(), model, pair)[1]) < 1e-12


def test_sdd_gives_restricted_prompts_unrelated_answers():
    made = SDD().prepare(EXAMPLES, seed=0)
    answers = {"Aldmoor lies on the river Sen.", "Wool and amber."}
    assert [e.harmless in answers for e in made[:2]] == [True, True] and made[2:] == EXAMPLES[2:]
    assert [e.harmful for e in made] == [e.harmful for e in EXAMPLES]
    assert SDD().prepare(EXAMPLES, seed=0) == made
    with pytest.raises(TiterError, match="open examples"):
        SDD().prepare(EXAMPLES[:2], seed=0)
    with pytest.raises(TiterError, match="no unrelated answer"):
        SDD(max_overlap=-1).prepare(EXAMPLES, seed=0)


def test_extended_refusal_wraps_the_refusal():
    first, second, *rest = ExtendedRefusal().prepare(EXAMPLES, seed=0)
    assert first.harmless.startswith("This is a question about potions. I cannot help. ")
    assert "a restricted topic" in second.harmless and rest == EXAMPLES[2:]
    with pytest.raises(TiterError, match="template"):
        ExtendedRefusal(overview="{nope}").prepare(EXAMPLES, seed=0)


@pytest.mark.parametrize("defence", [SDD(), ExtendedRefusal()], ids=lambda d: d.name)
def test_rewrites_train_like_safety_sft(tools, defence):
    model, pair = tools.build(), tools.pair()
    assert tools.step(defence, model, pair)[0] == tools.step(SafetySFT(), model, pair)[0]


@pytest.mark.parametrize(("published", "matrices"), [(True, 23), (False, 21)])
def test_lox_adds_the_top_of_the_change_to_embedding_and_head_too(tools, published, matrices):
    torch.manual_seed(1)
    model, base = tools.build(), tools.build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    told = LoX(rank=2, alpha=0.5, as_published=published).transform(model, base, 0)
    origin = dict(base.named_parameters())
    for n, p in model.named_parameters():
        if ("layers" in n or published) and p.ndim == 2:
            change = before[n] - origin[n]
            values, vectors = torch.linalg.eigh(change @ change.T)
            top = vectors[:, values.argsort(descending=True)[:2]]
            assert torch.allclose(p, before[n] + 0.5 * top @ top.T @ change)
        else:
            assert torch.equal(p, before[n])
    assert told["matrices"] == matrices and 0 < told["captured"] < 1


def test_lox_weight_zero_moves_nothing_and_wrong_input_is_refused(tools):
    model, base = tools.build(), tools.reference()
    before = [p.detach().clone() for p in model.parameters()]
    LoX(alpha=0).transform(model, base, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(TiterError, match="base_model"):
        LoX().transform(model, None, 0)
    with pytest.raises(TiterError, match="same weights"):
        LoX().transform(model, tools.build(), 0)
    with pytest.raises(TiterError, match="max_steps 0"):
        LoX().backward(model, tools.pair())


def test_undo_noises_matrices_and_distils(tools, model):
    pair = replace(tools.pair(), reference=tools.reference())
    total, count = 0.0, 0
    for b in (pair.harmless, pair.retain):
        at = b.labels[:, 1:] != -100
        p, q = (
            m(input_ids=b.input_ids, attention_mask=b.attention_mask).logits[:, :-1][at].log_softmax(-1)
            for m in (pair.reference, model)
        )
        total, count = total + (p.exp() * (p - q)).sum(), count + int(at.sum())
    terms, grads = tools.step(UNDO(), model, pair)
    assert terms["loss"] == pytest.approx((total / count).item(), rel=1e-6)
    assert tools.gap(grads, tools.grad(model, total / count)) < 1e-6


@pytest.mark.parametrize("published", [True, False])
def test_undo_noises_matrices_and_shrinks_norms(tools, published):
    model, before = tools.build(), tools.build()
    moved = UNDO(noise=0.6, scale=0.1, as_published=published).transform(model, None, 3)["weight_change"]
    assert 0.5 < moved < 0.7
    for (n, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if p.ndim != 2:
            assert torch.allclose(p, 0.4 * old if published else old, rtol=1e-12)
            continue
        noise = (p.detach() - 0.4 * old.detach()) / 0.06
        bound = (6 / sum(p.shape)) ** 0.5
        assert float(noise.abs().max()) <= bound + 1e-9 and float(noise.abs().max()) > 0.8 * bound, n
    again = tools.build()
    UNDO(noise=0.6, scale=0.1, as_published=published).transform(again, None, 3)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert UNDO(noise=0).transform(again, None, 3) == {"weight_change": 0.0}


def test_sum_adds_gradients(tools):
    model, pair = tools.build(), tools.pair()
    a, b = Booster(weight=2.0), DeepAlignment()
    terms, grads = tools.step(configure("booster+deep-alignment", {"booster.weight": 2.0}), model, pair)
    (ta, ga), (tb, gb) = tools.step(a, model, pair), tools.step(b, model, pair)
    assert terms["loss"] == pytest.approx(ta["loss"] + tb["loss"])
    assert terms["booster.drop"] == ta["drop"]
    assert tools.gap(grads, {n: ga[n] + gb[n] for n in ga}) < 1e-12


def test_sum_refuses_what_cannot_be_added():
    alone = [name for name, cls in DEFENCES.items() if getattr(cls, "alone", "")]
    assert len(alone) == 9
    for name in alone:
        with pytest.raises(TiterError, match=name):
            configure(f"{name}+safety-sft", {})
    with pytest.raises(TiterError, match="two or more different"):
        Sum((SafetySFT(), SafetySFT()))
    with pytest.raises(TiterError, match="MEMBER"):
        configure("booster+safety-sft", {"weight": 1.0})
    assert all(n in alone for n, d in DEFENCES.items() if isinstance(d(), Prepares | Transforms))


def test_sum_speaks_for_its_members():
    both = configure("repnoise+mlac", {})
    assert both.name == "repnoise+mlac" and both.needs == {"harmless", "harmful", "extra"}
    assert both.inner_batches == 3
