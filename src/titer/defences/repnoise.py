"""Representation noising (RepNoise): harmful representations towards noise, and the harmful loss up at every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.defences.base import capped, draws
from titer.defences.parts import mmd
from titer.defences.parts.layer_loss import head_cross_entropy
from titer.defences.parts.masks import legacy_mask, masked_labels, noise_mask, same_width
from titer.defences.safety_sft import retain_backward
from titer.models.parts import Parts, parts
from titer.schema.types import Batch, Pair
from titer.training.activations import captured
from titer.training.gradients import wide
from titer.training.losses import answer_positions, forward, response_ce


@dataclass(frozen=True)
class RepNoise:
    """stability + `noise_weight` x noise - `ascent_weight` x log(1 + ascent) (2405.14577, algorithm 1 and the code).

    stability  CE on the harmless text.
    noise      mean over layers of MMD(a, g): a are the MLP outputs (before the residual) on the harmful text, g a
               fresh unit Gaussian per layer, both (B, positions * d) after the mask.
    ascent     (CE at the output + sum over the L + 1 residual states of CE(head(final_norm(state)))) / (L + 1), on
               the harmful text: the mean first, then + 1, then the log, as in the code.
    mask       response tokens at which the two texts differ.

    The code reads its last state from the model's output, which Llama has normalised already, and norms it again. The
    default here norms it once, so this term is the model's own loss and counts twice, which keeps the paper's scale.
    Labels alone are masked, so the first answer token trains like the others. `legacy_loss=True` does as the code:
    second norm, prompt positions' logits zeroed (the first answer token adds ln V and no gradient), padding counted
    wherever the raw ids differ, token id 0 ignored. `as_published=True` is the same, by the name all methods share.

    Ablations: `use_mask=False` noises every token and keeps response tokens that coincide (with `legacy_loss`: trains
    on everything); `layerwise=False` ascends at the output alone; `log=False` takes min(ascent, `max_ascent`) nats;
    `unbiased_mmd=True` drops the estimator's floor, which is logged as `noise_floor`.
    """

    name: ClassVar[str] = "repnoise"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful"})
    passes: ClassVar[str] = "2 f/b (3 with retain) + the head on every layer"
    source: ClassVar[str] = "Rosati et al., NeurIPS 2024, arXiv 2405.14577"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = (
        "lr 3e-4 with 10k samples, two epochs at 8e-5, other harm domains, some seeds (2405.14577, app. E and J); "
        "other seeds, a standard trainer, small changes of setting (2412.07097)"
    )
    inner_batches: ClassVar[int] = 0

    ascent_weight: float = 1.0
    noise_weight: float = 0.001
    retain_weight: float = 1.0
    use_mask: bool = True
    layerwise: bool = True
    log: bool = True
    unbiased_mmd: bool = False
    legacy_loss: bool = False
    max_ascent: float = 100.0
    as_published: bool = False

    @property
    def published(self) -> bool:
        """Whether to do as the authors' code, under either name."""
        return self.legacy_loss or self.as_published

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: stability, harmful (CE at the output), ascent (before + 1 and log), noise, noise_floor, retain."""
        harmless, harmful = pair.harmless, pair.harmful
        if self.published:
            harmless, harmful = same_width(model, harmless, harmful)
        terms = self._stay(model, harmless, harmful) | self._destroy(model, harmless, harmful, pair)
        terms |= retain_backward(model, pair, self.retain_weight)
        return {"loss": self._total(terms)} | terms

    def _total(self, terms: dict[str, float]) -> float:
        ascent = terms.get("ascent", 0.0)
        pushed = math.log1p(ascent) if self.log else min(ascent, self.max_ascent)
        kept = terms["stability"] + self.retain_weight * terms.get("retain", 0.0)
        return kept + self.noise_weight * terms.get("noise", 0.0) - self.ascent_weight * pushed

    def _stay(self, model: nn.Module, harmless: Batch, harmful: Batch) -> dict[str, float]:
        if self.published:
            mask = legacy_mask(harmless.input_ids, harmful.input_ids, self.use_mask)
            loss = _output_ce(model, harmless, mask)
        else:
            labels = masked_labels(harmless, harmful, self.use_mask)
            loss = response_ce(model, Batch(harmless.input_ids, harmless.attention_mask, labels))
        loss.backward()
        return {"stability": loss.item()}

    def _destroy(self, model: nn.Module, harmless: Batch, harmful: Batch, pair: Pair) -> dict[str, float]:
        if self.ascent_weight == 0 and self.noise_weight == 0:
            return {}
        found = parts(model)
        states, outputs = observe(model, found, harmful)
        ascent, terms = self._ascent(model, found, states, harmless, harmful)
        noise, more = self._noise(outputs, harmless, harmful, pair)
        (noise - ascent).backward()
        return terms | more

    def _ascent(
        self, model: nn.Module, found: Parts, states: list[Tensor], harmless: Batch, harmful: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        if self.ascent_weight == 0:
            return states[0].new_zeros(()), {}
        if self.published:
            mask = legacy_mask(harmful.input_ids, harmless.input_ids, self.use_mask)
            mean, harm = _legacy_ascent(model, found, states, harmful.input_ids, mask, self.layerwise)
        else:
            labels = masked_labels(harmful, harmless, self.use_mask)
            mean, harm = mean_ascent(model, found, states, labels, self.layerwise)
        pushed = mean.log1p() if self.log else capped(mean, self.max_ascent)
        return self.ascent_weight * pushed, {"harmful": harm, "ascent": mean.item()}

    def _noise(
        self, outputs: list[Tensor], harmless: Batch, harmful: Batch, pair: Pair
    ) -> tuple[Tensor, dict[str, float]]:
        if self.noise_weight == 0:
            return outputs[0].new_zeros(()), {}
        if self.published:
            mask = legacy_mask(harmful.input_ids, harmless.input_ids, self.use_mask)
        else:
            mask = noise_mask(harmful, harmless, self.use_mask)
        random = draws(pair, mask.device, "repnoise")
        noise = mean_mmd(outputs, mask, random, self.unbiased_mmd)
        floor = mmd.floor(len(mask), unbiased=self.unbiased_mmd)
        return self.noise_weight * noise, {"noise": noise.item(), "noise_floor": floor}


def observe(model: nn.Module, found: Parts, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """The L + 1 residual states before the final norm, and the L MLP outputs, of one forward pass."""
    with captured((*found.layers, found.final_norm), "input") as states, captured(found.mlps) as outputs:
        forward(model, batch)
    return states, outputs


def mean_mmd(outputs: list[Tensor], mask: Tensor, random: torch.Generator, unbiased: bool = False) -> Tensor:
    """Mean over layers of MMD between masked activations (B, T, d) and masked unit Gaussians.

    Only columns with a masked row are looked at; the noise of a layer is drawn as (B, columns, d), layers in order.
    """
    columns = torch.nonzero(mask.any(0)).squeeze(1)
    keep = mask[:, columns, None]
    total = outputs[0].new_zeros((), dtype=wide(outputs[0].dtype))
    for output in outputs:
        here = output[:, columns].to(total.dtype)
        noise = torch.randn(here.shape, generator=random, device=here.device, dtype=here.dtype)
        total = total + mmd.mmd((here * keep).flatten(1), (noise * keep).flatten(1), unbiased=unbiased)
    return total / len(outputs)


def mean_ascent(
    model: nn.Module, found: Parts, states: list[Tensor], labels: Tensor, layerwise: bool = True
) -> tuple[Tensor, float]:
    """(CE at the output + sum of CE over all L + 1 states) / (L + 1), or CE at the output; and CE at the output."""
    rows, columns, targets = answer_positions(labels)
    used = states if layerwise else states[-1:]
    hidden = torch.cat([found.final_norm(s[rows, columns]) for s in used])
    share = hidden.new_full((len(used), len(rows)), 1 / (len(used) * len(rows)), dtype=wide(hidden.dtype))
    if layerwise:
        share[-1] *= 2
    mean, losses = head_cross_entropy(model, found.head, hidden, targets.repeat(len(used)), share.flatten())
    return mean, losses[-len(rows) :].mean().item()


def _legacy_positions(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows, columns and labels that take a gradient in the original masked CE, and how many it averages over."""
    labels = (ids * mask)[:, 1:]
    counted = labels != 0
    rows, columns = torch.nonzero(counted & mask[:, :-1], as_tuple=True)
    return rows, columns, labels[rows, columns], int(counted.sum())


def _legacy_ce(model: nn.Module, found: Parts, states: list[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """Sum over normed states of the original masked CE: masked-out logits are all zero, so they cost ln V each."""
    rows, columns, targets, count = _legacy_positions(ids, mask)
    hidden = torch.cat([s[rows, columns] for s in states])
    share = hidden.new_full((len(hidden),), 1 / count, dtype=wide(hidden.dtype))
    live, _ = head_cross_entropy(model, found.head, hidden, targets.repeat(len(states)), share)
    dead = len(states) * (count - len(rows)) / count * math.log(len(found.head.weight))  # type: ignore[arg-type]
    assert isinstance(live, Tensor)
    return live + dead


def _legacy_ascent(
    model: nn.Module, found: Parts, states: list[Tensor], ids: Tensor, mask: Tensor, layerwise: bool
) -> tuple[Tensor, float]:
    normed = [found.final_norm(s) for s in states]
    output = _legacy_ce(model, found, normed[-1:], ids, mask)
    if not layerwise:
        return output, output.item()
    lens = _legacy_ce(model, found, [*normed[:-1], found.final_norm(normed[-1])], ids, mask)
    return (output + lens) / len(states), output.item()


def _output_ce(model: nn.Module, batch: Batch, mask: Tensor) -> Tensor:
    found = parts(model)
    with captured([found.final_norm]) as normed:
        forward(model, batch)
    return _legacy_ce(model, found, normed, batch.input_ids, mask)
