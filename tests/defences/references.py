"""Float64 references of the published algorithms, in plain torch; `benchmarks/parity.py` measures against them too.

Hidden states come from the model's own `output_hidden_states`, tokens are picked by mask, gradients by autograd.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from toolbox import HARMFUL, PROMPTS, REFUSAL, Toolbox, batch, build, make_pair
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from titer.defences.adversarial_loss import AdversarialLoss
from titer.defences.base import Defence
from titer.defences.booster import Booster
from titer.defences.circuit_breakers import CircuitBreakers
from titer.defences.ctrap import CTRAP
from titer.defences.deep_alignment import DeepAlignment
from titer.defences.gradient_ascent import GradientAscent
from titer.defences.mlac import MLAC
from titer.defences.rmu import RMU
from titer.defences.safety_sft import SafetySFT
from titer.defences.t_vaccine import TVaccine
from titer.defences.tar import TAR
from titer.defences.triplet import Triplet
from titer.defences.undo import UNDO
from titer.defences.vaccine import Vaccine
from titer.schema.types import Batch, Pair
from titer.training.gradients import generator

Gradients = dict[str, Tensor]
Pick = Callable[[Batch], Tensor]
ce, grad = Toolbox.ce, Toolbox.grad


# ------------------------------------------------------------------------------------------------------------ pieces


def everything(b: Batch) -> Tensor:
    """All tokens but padding."""
    return b.attention_mask.bool()


def answers(b: Batch) -> Tensor:
    """Response tokens."""
    return b.labels != -100


def run(model: nn.Module, b: Batch) -> object:
    return model(input_ids=b.input_ids, attention_mask=b.attention_mask, output_hidden_states=True)


def states(model: nn.Module, batches: Sequence[Batch], pick: Pick) -> Tensor:
    """(L + 1, N, d): Hugging Face's hidden states at the picked tokens of all batches."""
    found = [torch.stack([h[pick(b)] for h in run(model, b).hidden_states]) for b in batches]  # type: ignore[attr-defined]
    return torch.cat(found, 1)


def logits(model: nn.Module, b: Batch, pick: Pick) -> Tensor:
    return run(model, b).logits[pick(b)]  # type: ignore[attr-defined,no-any-return]


def predicting(b: Batch) -> Tensor:
    """Positions whose next token is a response token."""
    return torch.cat([answers(b)[:, 1:], torch.zeros_like(b.labels[:, :1], dtype=torch.bool)], 1)


def kept(pair: Pair) -> list[Batch]:
    return [pair.harmless] if pair.retain is None else [pair.harmless, pair.retain]


def joint_ce(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """One mean over the response tokens of several batches."""
    counts = [int(answers(b)[:, 1:].sum()) for b in batches]
    total = sum((n * ce(model, b) for n, b in zip(counts, batches, strict=True)), start=torch.zeros(()).double())
    return total / sum(counts)


def within(grads: Gradients, inside: Callable[[str], bool]) -> Gradients:
    return {n: g if inside(n) else torch.zeros_like(g) for n, g in grads.items()}


def add(*terms: tuple[float, Gradients]) -> Gradients:
    names = terms[0][1]
    return {n: sum((w * g[n] for w, g in terms), start=torch.zeros_like(names[n])) for n in names}


def bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def length(grads: Gradients) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in grads.values()))


@contextmanager
def moved(model: nn.Module, by: Gradients, scale: float) -> Iterator[nn.Module]:
    """A copy of the model at w + scale x by."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for n, p in Toolbox.params(twin).items():
            p += scale * by[n]
    yield twin


# ----------------------------------------------------------------------------------------------------------- methods


def safety_sft(d: SafetySFT, model: nn.Module, pair: Pair) -> Gradients:
    return grad(model, ce(model, pair.harmless) + d.retain_weight * ce(model, pair.retain))


def gradient_ascent(d: GradientAscent, model: nn.Module, pair: Pair) -> Gradients:
    return grad(model, d.retain_weight * ce(model, pair.retain) - ce(model, pair.harmful))


def adversarial_loss(d: AdversarialLoss, model: nn.Module, pair: Pair) -> Gradients:
    stay = ce(model, pair.harmless) + d.retain_weight * ce(model, pair.retain)
    return grad(model, stay - d.ascent_weight * ce(model, pair.harmful))


def shifted_ce(model: nn.Module, b: Batch, at: Sequence[int], rho: float) -> Tensor:
    """CE under the worst shift of joint norm rho of the attention outputs of the layers `at`."""
    blocks, seen = [bare(model).model.layers[i].self_attn for i in at], []
    hooks = [x.register_forward_hook(lambda m, a, o: seen.append(o[0])) for x in blocks]
    loss = ce(model, b)
    for h in hooks:
        h.remove()
    found = torch.autograd.grad(loss, seen)
    size = torch.cat([g.flatten() for g in found]).norm() + 1e-7
    hooks = [
        x.register_forward_hook(lambda m, a, o, e=rho * g / size: (o[0] + e, *o[1:]))
        for x, g in zip(blocks, found, strict=True)
    ]
    loss = ce(model, b)
    for h in hooks:
        h.remove()
    return loss


def vaccine(d: Vaccine, model: nn.Module, pair: Pair) -> Gradients:
    loss = shifted_ce(model, pair.harmless, range(3), d.rho)
    return grad(model, loss + d.retain_weight * ce(model, pair.retain))


def t_vaccine(d: TVaccine, model: nn.Module, pair: Pair) -> Gradients:
    """The layers are drawn as the defence draws them; everything else is its own."""
    seen: list[Tensor] = []
    blocks = [x.self_attn for x in bare(model).model.layers]
    hooks = [x.register_forward_hook(lambda m, a, o: seen.append(o[0])) for x in blocks]
    loss = ce(model, pair.harmful)
    for h in hooks:
        h.remove()
    sizes = torch.stack([g.norm() for g in torch.autograd.grad(loss, seen)]) + 1e-7
    random = generator(pair.seed, pair.step // d.draw_every, "cpu", "t-vaccine")
    drawn = sorted(torch.multinomial(sizes, int(d.share * 3), generator=random).tolist())
    loss = shifted_ce(model, pair.harmless, drawn, d.rho) + d.retain_weight * ce(model, pair.retain)
    return within(grad(model, loss), lambda n: any(f"layers.{i}." in n for i in drawn))


def booster(d: Booster, model: nn.Module, pair: Pair) -> Gradients:
    stay = grad(model, ce(model, pair.harmless) + d.retain_weight * ce(model, pair.retain))
    here = grad(model, ce(model, pair.harmful))
    with moved(model, here, -d.alpha / (length(here) + 1e-7)) as twin:
        there = grad(twin, ce(twin, pair.harmful))
    return add((1.0, stay), (d.weight, here), (-d.weight, there))


def ctrap(d: CTRAP, model: nn.Module, pair: Pair) -> Gradients:
    here = grad(model, ce(model, pair.harmful))
    with moved(model, here, -d.alpha / (length(here) + 1e-7)) as twin:
        traps = [replace(b, labels=b.labels.masked_fill(answers(b), d.collapse_token)) for b in kept(pair)]
        collapse = grad(twin, joint_ce(twin, traps))
    return add((1.0, grad(model, joint_ce(model, kept(pair)))), (d.weight, collapse))


def mlac(d: MLAC, model: nn.Module, pair: Pair) -> Gradients:
    twin, total = (
        copy.deepcopy(model),
        grad(model, ce(model, pair.harmless) + d.retain_weight * ce(model, pair.retain)),
    )
    for b in (pair.harmful, *pair.extra[: d.inner_steps - 1]):
        here = grad(twin, ce(twin, b))
        total = add((1.0, total), (-d.weight, here))
        with torch.no_grad():
            for n, p in Toolbox.params(twin).items():
                p -= d.inner_learning_rate * here[n]
    return total


def tar(d: TAR, model: nn.Module, pair: Pair) -> Gradients:
    pick = everything if d.as_published else answers
    if pair.step < d.mapping * pair.steps:
        return _tar_mapping(d, model, pair, pick)
    before = states(pair.reference, kept(pair), pick)
    drift = (states(model, kept(pair), pick) - before).norm(dim=-1).mean()
    stay = grad(model, d.retain_weight * (joint_ce(model, kept(pair)) + drift))
    return add((1.0, stay), (d.weight, _tar_tamper(d, model, pair)))


def _tar_mapping(d: TAR, model: nn.Module, pair: Pair, pick: Pick) -> Gradients:
    table = torch.randn(31, 16, generator=generator(pair.seed, 0, "cpu", "tar")).double()
    h = states(model, [pair.harmful], pick)
    r = table[pair.harmful.input_ids[pick(pair.harmful)]]
    loss = (1 - cosine_similarity(h, r[None], dim=-1).abs()).mean()
    return grad(model, loss + d.retain_weight * joint_ce(model, kept(pair)))


def _tar_tamper(d: TAR, model: nn.Module, pair: Pair) -> Gradients:
    """An attacker of the same optimiser, replayed on a copy."""
    twin, found = copy.deepcopy(model), []
    adam = torch.optim.AdamW(Toolbox.params(twin).values(), lr=d.inner_learning_rate, weight_decay=0.01)
    for k, b in enumerate(pair.extra[: d.inner_steps], start=1):
        adam.zero_grad()
        ce(twin, b).backward()
        adam.step()
        if k % d.every == 0:
            p = logits(twin, pair.held_out, everything if d.as_published else predicting).softmax(-1)
            found.append((math.exp(d.decay * (k - d.inner_steps)), grad(twin, (p * p.log()).sum(-1).mean())))
    total = 1.0 if d.as_published else sum(w for w, _ in found)
    return add(*((w / total, g) for w, g in found))


def circuit_breakers(d: CircuitBreakers, model: nn.Module, pair: Pair) -> Gradients:
    pick = everything if d.as_published else answers
    at = [int(depth * 3) for depth in d.depths]
    harm, harm_before = (states(m, [pair.harmful], pick) for m in (model, pair.reference))
    reroute = cosine_similarity(harm[at], harm_before[at], dim=-1).clamp(min=0).mean()
    gap = states(model, kept(pair), pick) - states(pair.reference, kept(pair), pick)
    retain = (gap if d.as_published else gap[at]).norm(dim=-1).mean()
    late = (pair.step + 1) / (2 * pair.steps)
    found = grad(model, d.alpha * ((1 - late) * reroute + late * retain))
    trained = [f"layers.{i}." for i in range(max(at) + 1)] if d.as_published else [""]
    return within(found, lambda n: any(t in n for t in trained))


def triplet(d: Triplet, model: nn.Module, pair: Pair) -> Gradients:
    first = int(d.depth * 3)
    good, good_before = (states(m, kept(pair), answers)[first:-1] for m in (model, pair.reference))
    harm, harm_before = (states(m, [pair.harmful], answers)[first:-1] for m in (model, pair.reference))
    centre = harm.mean(1, keepdim=True)
    pull = 1 - cosine_similarity(good_before, good, dim=-1) - (1 - cosine_similarity(good, centre, dim=-1))
    push = 1 - cosine_similarity(harm, centre, dim=-1) - (1 - cosine_similarity(harm, harm_before, dim=-1))
    loss = d.benign_weight * (pull + d.benign_margin).clamp(min=0).mean()
    loss = loss + d.harmful_weight * (push + d.harmful_margin).clamp(min=0).mean()
    return grad(model, loss + d.kl_weight * divergence(model, pair))


def divergence(model: nn.Module, pair: Pair) -> Tensor:
    """KL(reference || model) over the predictions of response tokens."""
    p, q = (torch.cat([logits(m, b, predicting) for b in kept(pair)]).log_softmax(-1) for m in (pair.reference, model))
    return (p.exp() * (p - q)).sum(-1).mean()


def rmu(d: RMU, model: nn.Module, pair: Pair) -> Gradients:
    u = torch.rand(16, generator=generator(pair.seed, 0, "cpu", "rmu"), dtype=torch.float64)
    at = int(d.depth * 3) + 1  # what block l puts out is state l + 1
    forget = ((states(model, [pair.harmful], answers)[at] - d.steering * u / u.norm()) ** 2).mean()
    gap = states(model, [pair.retain], answers)[at] - states(pair.reference, [pair.retain], answers)[at]
    found = grad(model, forget + d.retain_weight * (gap**2).mean())
    trained = [f"layers.{i}.mlp.down_proj" for i in range(max(0, at - 3), at)]
    return within(found, lambda n: any(t in n for t in trained))


def deep_alignment(d: DeepAlignment, model: nn.Module, pair: Pair) -> Gradients:
    draw = generator(pair.seed, pair.step, "cpu", "deep-alignment" + (f"/{pair.micro}" if pair.micro else ""))
    rows = len(pair.harmful.labels)
    chance, size = torch.rand(rows, generator=draw), torch.rand(rows, generator=draw)
    total, count = torch.zeros(()).double(), 0
    for i in range(rows):
        harm = pair.harmful.labels[i][answers(pair.harmful)[i]].tolist()
        good = pair.harmless.labels[i][answers(pair.harmless)[i]].tolist()
        start = int(answers(pair.harmless)[i].nonzero()[0])
        longest = min(d.max_prefix, len(harm) if d.as_published else len(harm) - 1)
        k = 1 + int(float(size[i]) * longest) if chance[i] < d.share else 0
        ids = torch.tensor([pair.harmless.input_ids[i, :start].tolist() + harm[:k] + good])
        out = model(input_ids=ids).logits[0, -len(good) - 1 : -1]
        total, count = total + cross_entropy(out, torch.tensor(good), reduction="sum"), count + len(good)
    anchor, tokens = ce(model, pair.retain), int(answers(pair.retain)[:, 1:].sum())
    if not d.as_published:
        return grad(model, total / count + d.retain_weight * anchor)
    shared = d.retain_weight * tokens
    return grad(model, (total + shared * anchor) / (count + shared))


def undo(d: UNDO, model: nn.Module, pair: Pair) -> Gradients:
    return grad(model, divergence(model, pair))


# ------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Method:
    """A defence in one of its variants, and its reference; `step` is of 10."""

    label: str
    defence: Defence
    reference: Callable[..., Gradients]
    step: int = 9


SHORT = {"inner_steps": 3, "every": 1, "inner_learning_rate": 0.01, "decay": 0.5, "retain_weight": 0.5}
OURS = {"as_published": False}
METHODS = (
    Method("safety-sft", SafetySFT(0.5), safety_sft),
    Method("gradient-ascent", GradientAscent(0.5), gradient_ascent),
    Method("adversarial-loss", AdversarialLoss(0.3, 0.5), adversarial_loss),
    Method("vaccine", Vaccine(1.5, 0.5), vaccine),
    Method("t-vaccine", TVaccine(1.5, 0.7, retain_weight=0.5), t_vaccine),
    Method("booster", Booster(2.0, 0.3, 0.5), booster),
    Method("ctrap", CTRAP(0.5, 0.3, 4), ctrap),
    Method("mlac", MLAC(3, 0.05, 0.3, 0.5), mlac),
    Method("tar, mapping", TAR(retain_weight=0.5), tar, step=1),
    Method("tar, mapping, as_published=False", TAR(retain_weight=0.5, **OURS), tar, step=1),
    Method("tar", TAR(**SHORT), tar),
    Method("tar, as_published=False", TAR(**SHORT, **OURS), tar),
    Method("circuit-breakers", CircuitBreakers(depths=(0.34, 0.67)), circuit_breakers, step=4),
    Method("circuit-breakers, one block left alone", CircuitBreakers(depths=(0.34,)), circuit_breakers, step=4),
    Method("circuit-breakers, as_published=False", CircuitBreakers(depths=(0.34, 0.67), **OURS), circuit_breakers, 4),
    Method("triplet", Triplet(depth=0.34), triplet),
    Method("rmu", RMU(3.0, 2.0, 0.5), rmu),
    Method("deep-alignment", DeepAlignment(0.8, 3, 0.5), deep_alignment),
    Method("deep-alignment, as_published=False", DeepAlignment(0.8, 3, 0.5, **OURS), deep_alignment),
    Method("undo", UNDO(), undo),
)
CASES = ("full", "LoRA", "padding", "one prompt", "accumulation")
ACCUMULATED = 2


def pairs_of(case: str, step: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs of one optimiser step for the defence, and the same for the reference; rows differ in length."""
    pair = replace(make_pair(step=step), reference=Toolbox.reference())
    if case == "padding":  # what is wider must not count; the reference never sees it
        return [replace(_wide(pair), reference=pair.reference)], [pair]
    if case == "one prompt":
        one = [PROMPTS[0]] * 4
        pair = replace(pair, harmless=batch(one, REFUSAL), harmful=batch(one, HARMFUL))
    if case == "accumulation":
        halves = [slice(0, 2), slice(2, 4)]
        made = [replace(pair, harmless=cut(pair.harmless, s), harmful=cut(pair.harmful, s)) for s in halves]
        made = [replace(p, micro=m) for m, p in enumerate(made)]
        return made, made
    return [pair], [pair]


def cut(b: Batch, rows: slice) -> Batch:
    return Batch(b.input_ids[rows], b.attention_mask[rows], b.labels[rows])


def _wide(pair: Pair) -> Pair:
    def wider(b: Batch) -> Batch:
        pad = nn.functional.pad
        return Batch(
            pad(b.input_ids, (0, 4), value=3), pad(b.attention_mask, (0, 4)), pad(b.labels, (0, 4), value=-100)
        )

    assert pair.retain is not None
    assert pair.held_out is not None
    return replace(
        pair,
        harmless=wider(pair.harmless),
        harmful=wider(pair.harmful),
        retain=wider(pair.retain),
        extra=tuple(wider(b) for b in pair.extra),
        held_out=wider(pair.held_out),
    )


def both_gradients(method: Method, case: str) -> tuple[Gradients, Gradients]:
    """The defence's gradient of one optimiser step, and the reference's."""
    model = build(lora=case == "LoRA")
    ours, theirs = pairs_of(case, method.step)
    expected = add(*((1 / len(theirs), method.reference(method.defence, model, p)) for p in theirs))
    model.zero_grad()
    for pair in ours:
        method.defence.backward(model, pair)
    found = {n: p.grad for n, p in model.named_parameters()}
    return {
        n: torch.zeros_like(e) if found[n] is None else found[n] / len(ours) for n, e in expected.items()
    }, expected


def compared(found: Gradients, expected: Gradients) -> tuple[float, float]:
    """Cosine of the two, and their relative distance."""
    gap = Toolbox.gap(found, expected)
    inner = sum(float((found[n] * expected[n]).sum()) for n in expected)
    return inner / (length(found) * length(expected)), gap
