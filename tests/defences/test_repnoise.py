"""RepNoise against the maths of papers B.3 written out here: every logit, MMD by broadcasting, float64."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from titer.defences.repnoise import RepNoise
from titer.training.gradients import generator

MODES = [
    {},
    {"use_mask": False},
    {"layerwise": False},
    {"log": False},
    {"unbiased_mmd": True},
    {"legacy_loss": True},
    {"legacy_loss": True, "use_mask": False},
    {"legacy_loss": True, "layerwise": False},
]


def observe(model, batch):
    """Residual states before the final norm, MLP outputs and logits, by hooks of the test's own."""
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    states, mlps, handles = [], [], []
    for layer in lm.model.layers:
        handles.append(layer.register_forward_pre_hook(lambda m, a: states.append(a[0])))
        handles.append(layer.mlp.register_forward_hook(lambda m, a, o: mlps.append(o)))
    handles.append(lm.model.norm.register_forward_pre_hook(lambda m, a: states.append(a[0])))
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    for h in handles:
        h.remove()
    return states, mlps, logits, lm.model.norm, lm.lm_head


def reference_mmd(a, g, unbiased):
    rows = torch.cat([a, g])
    n, b = len(rows), len(a)
    d2 = ((rows[None] - rows[:, None]) ** 2).sum(-1)
    width = d2.detach().sum() / (n * n - n) / 4
    k = sum(torch.exp(-d2 / (width * 2**i)) for i in range(5))
    xx, yy, xy = k[:b, :b], k[b:, b:], k[:b, b:]
    if unbiased:
        off = ~torch.eye(b, dtype=torch.bool)
        return xx[off].mean() + yy[off].mean() - 2 * xy.mean()
    return (xx + yy - xy - xy.T).mean()


def masks(pair, mode):
    """CE labels and the noise mask of the harmful text, CE labels of the harmless one (all as (B, T) tensors)."""
    h, s = pair.harmful, pair.harmless
    width = max(h.input_ids.shape[1], s.input_ids.shape[1])

    def column(b, t, i):
        inside = t < b.input_ids.shape[1] and b.attention_mask[i, t] == 1
        return int(b.input_ids[i, t]) if inside else None

    out = []
    for own, other in ((h, s), (s, h)):
        labels, noise = own.labels.clone(), torch.zeros(own.labels.shape, dtype=torch.bool)
        for i in range(len(labels)):
            for t in range(min(width, labels.shape[1])):
                a, b = column(own, t, i), column(other, t, i)
                response = labels[i, t] != -100
                if mode.get("use_mask", True) and a == b:
                    labels[i, t] = -100
                noise[i, t] = (response and a != b) if mode.get("use_mask", True) else a is not None
        out.append((labels, noise))
    return out


def legacy_ce(logits, ids, m):
    shifted, labels = logits[:, :-1] * m[:, :-1, None], ids[:, 1:] * m[:, 1:].long()
    labels = labels.masked_fill(labels == 0, -100)
    return cross_entropy(shifted.flatten(0, 1), labels.flatten(), ignore_index=-100)


def reference(model, pair, mode, ascent_weight=1.0, noise_weight=0.001, retain_weight=1.0):
    (h_labels, noise_at), (s_labels, _) = masks(pair, mode)
    legacy, layerwise = mode.get("legacy_loss", False), mode.get("layerwise", True)
    if legacy:
        m = (pair.harmful.input_ids != pair.harmless.input_ids).double()
        noise_at = m = m if mode.get("use_mask", True) else torch.ones_like(m)

    def ce(logits, labels, ids):
        if legacy:
            return legacy_ce(logits, ids, m)
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    states, mlps, logits, norm, head = observe(model, pair.harmful)
    output = ce(logits, h_labels, pair.harmful.input_ids)
    total = output
    if layerwise:
        seen = [norm(x) for x in states]
        if legacy:
            seen[-1] = norm(seen[-1])
        total = total + sum(ce(head(x), h_labels, pair.harmful.input_ids) for x in seen)
        total = total / len(states)
    columns = noise_at.bool().any(0)
    draw = generator(pair.seed, pair.step, "cpu", "repnoise")
    noise, keep = 0.0, noise_at.double()[:, columns, None]
    for a in mlps:
        a = a[:, columns]
        g = torch.randn(a.shape, generator=draw, dtype=a.dtype)
        noise = noise + reference_mmd((a * keep).flatten(1), (g * keep).flatten(1), mode.get("unbiased_mmd", False))
    noise = noise / len(mlps)
    s = model(input_ids=pair.harmless.input_ids, attention_mask=pair.harmless.attention_mask).logits
    stability = ce(s, s_labels, pair.harmless.input_ids)
    r = pair.retain
    r_logits = model(input_ids=r.input_ids, attention_mask=r.attention_mask).logits
    retain = cross_entropy(r_logits[:, :-1].flatten(0, 1), r.labels[:, 1:].flatten(), ignore_index=-100)
    pushed = torch.log(total + 1) if mode.get("log", True) else total
    loss = stability + noise_weight * noise - ascent_weight * pushed + retain_weight * retain
    terms = {"stability": stability, "noise": noise, "ascent": total, "harmful": output, "retain": retain}
    return loss, {"loss": loss.item()} | {k: v.item() for k, v in terms.items()}


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_step_equals_the_written_maths(tools, model, mode):
    pair = tools.pair(width=10)
    loss, expected = reference(model, pair, mode, ascent_weight=0.7, noise_weight=0.5, retain_weight=0.3)
    grads = tools.grad(model, loss)
    defence = RepNoise(ascent_weight=0.7, noise_weight=0.5, retain_weight=0.3, **mode)
    terms, got = tools.step(defence, model, pair)
    for key, value in expected.items():
        assert terms[key] == pytest.approx(value, rel=1e-6), key
    assert tools.gap(got, grads) < 1e-6


@pytest.mark.parametrize("pad", [0, 2], ids=["pad0", "pad=eos"])
@pytest.mark.parametrize("width", [0, 14])
def test_padding_changes_nothing(tools, pad, width):
    model = tools.build()
    plain, grads = tools.step(RepNoise(noise_weight=1.0), model, tools.pair())
    padded, same = tools.step(RepNoise(noise_weight=1.0), model, tools.pair(pad=pad, width=width))
    assert padded == pytest.approx(plain)
    assert tools.gap(same, grads) < 1e-9


def test_batches_of_unlike_width_are_compared_by_position(tools):
    pair = tools.pair()
    assert pair.harmful.input_ids.shape != pair.harmless.input_ids.shape
    model = tools.build()
    loss, expected = reference(model, pair, {}, noise_weight=0.5)
    terms, grads = tools.step(RepNoise(noise_weight=0.5), model, pair)
    assert terms["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-6


def test_legacy_pads_unlike_widths_to_the_same(tools):
    model = tools.build()
    terms, grads = tools.step(RepNoise(legacy_loss=True), model, tools.pair())
    wide, same = tools.step(RepNoise(legacy_loss=True), model, tools.pair(width=10))
    assert terms == pytest.approx(wide)
    assert tools.gap(grads, same) < 1e-9


def test_first_answer_token_trains_only_in_the_correct_form(tools):
    """One answer token: the original zeroes the only logits it could learn from, and reads ln V."""
    model, prompts = tools.build(), [[1, 5, 6], [1, 7]]
    pair = type(tools.pair())(harmless=tools.batch(prompts, [[15], [16]]), harmful=tools.batch(prompts, [[20], [21]]))
    terms, grads = tools.step(RepNoise(noise_weight=0.0, legacy_loss=True), model, pair)
    assert terms["stability"] == pytest.approx(math.log(31)) and terms["harmful"] == pytest.approx(math.log(31))
    assert all(not g.any() for g in grads.values())
    _, grads = tools.step(RepNoise(noise_weight=0.0), model, pair)
    assert any(bool(g.any()) for g in grads.values())


def test_token_id_zero_is_a_token(tools):
    model, prompts = tools.build(), [[1, 5, 6], [1, 7, 7]]

    def harmful(answers, **options):
        pair = type(tools.pair())(
            harmless=tools.batch(prompts, [[15, 16], [15, 17]]), harmful=tools.batch(prompts, answers)
        )
        return tools.step(RepNoise(noise_weight=0, **options), model, pair)[0]["harmful"]

    with_zero, batch = harmful([[20, 0], [21, 22]]), tools.batch(prompts, [[20, 0], [21, 22]])
    assert with_zero == pytest.approx(tools.ce(model, batch).item(), rel=1e-9)
    assert harmful([[20, 0], [21, 22]], legacy_loss=True) != pytest.approx(with_zero, rel=1e-3)


def test_weight_zero_leaves_out_a_term_and_all_zero_is_safety_sft(tools):
    from titer.defences.safety_sft import SafetySFT

    model, pair = tools.build(), tools.pair()
    terms, grads = tools.step(RepNoise(ascent_weight=0, noise_weight=0, use_mask=False), model, pair)
    plain, expected = tools.step(SafetySFT(), model, pair)
    assert terms == pytest.approx(plain)
    assert all(torch.equal(grads[n], expected[n]) for n in grads)
    assert not {"noise", "noise_floor"} & set(tools.step(RepNoise(noise_weight=0), model, pair)[0])


def test_no_log_stops_at_the_bound(tools):
    model, pair = tools.build(), tools.pair()
    _, grads = tools.step(RepNoise(log=False, noise_weight=0, max_ascent=0.01), model, pair)
    _, expected = tools.step(RepNoise(ascent_weight=0, noise_weight=0), model, pair)
    assert tools.gap(grads, expected) < 1e-12


def test_the_gaussian_depends_on_seed_and_step_only(tools):
    from dataclasses import replace

    model, pair = tools.build(), tools.pair()
    one = RepNoise().backward(model, pair)
    torch.manual_seed(99)
    assert RepNoise().backward(model, pair) == one
    assert RepNoise().backward(model, replace(pair, step=4))["noise"] != one["noise"]
    assert RepNoise().backward(model, replace(pair, seed=8))["noise"] != one["noise"]


def test_bf16_is_finite_and_near_fp64(tools):
    exact = RepNoise(noise_weight=1.0).backward(tools.build(), tools.pair())
    rough, grads = tools.step(RepNoise(noise_weight=1.0), tools.build(dtype=torch.bfloat16), tools.pair())
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert all(bool(torch.isfinite(g).all()) for g in grads.values())


def test_frozen_head_takes_no_gradient(tools):
    model = tools.build("llama-tied", lora=True)
    RepNoise().backward(model, tools.pair())
    assert model.get_base_model().lm_head.weight.grad is None


def test_head_inside_the_adapter_is_refused(tools):
    import peft

    from titer.schema.errors import TiterError

    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    model = peft.get_peft_model(tools.build(), lora)
    with pytest.raises(TiterError, match="head"):
        RepNoise().backward(model, tools.pair())


@pytest.mark.parametrize(
    "family", ["llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt-neox", "phi"]
)
def test_families_output_term_is_the_models_own_loss(tools, family):
    model, pair = tools.build(family), tools.pair()
    defence = RepNoise(layerwise=False, noise_weight=0, retain_weight=0, log=False, use_mask=False)
    terms, grads = tools.step(defence, model, pair)
    loss = tools.ce(model, pair.harmless) - tools.ce(model, pair.harmful)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-6
    assert tools.step(RepNoise(), model, pair)[0]["ascent"] > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_chunks_change_nothing_and_no_more_logits_exist_at_once(tools, family, monkeypatch):
    from titer.defences.parts import layer_loss as layerwise

    model, pair = tools.build(family), tools.pair()
    whole, expected = tools.step(RepNoise(), model, pair)
    heights, inner = [], layerwise._softmax_slope

    def watched(hidden, *rest):
        heights.append(len(hidden))
        return inner(hidden, *rest)

    monkeypatch.setattr(layerwise, "CHUNK_ELEMENTS", 31 * 7)
    monkeypatch.setattr(layerwise, "_softmax_slope", watched)
    terms, grads = tools.step(RepNoise(), model, pair)
    assert len(heights) > 5 and max(heights) == 7
    assert terms == pytest.approx(whole, rel=1e-9)
    assert tools.gap(grads, expected) < 1e-9


def test_layerwise_loss_cannot_be_differentiated_twice(tools):
    from titer.defences.parts.layer_loss import head_cross_entropy

    model = tools.build()
    hidden = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    loss, _ = head_cross_entropy(model, model.lm_head, hidden, torch.tensor([1, 2, 3]), torch.ones(3).double())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()
