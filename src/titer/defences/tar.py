"""TAR (tamper-resistant safeguards): map harmful states to noise, then defend at points along a simulated attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, log_softmax

from titer.defences.base import capped, need_extra, need_held_out, need_reference
from titer.defences.parts.inner_loop import Running, simulate
from titer.defences.parts.states import at_tokens, counted, hidden_states, kept_rows, observed
from titer.models.parts import parts
from titer.schema.types import Batch, Pair
from titer.training.gradients import accumulate, generator, gradient, wide
from titer.training.losses import forward, response_ce, response_logits

WEIGHT_DECAY = 0.01  # of the authors' simulated attacker: torch's default for AdamW


@dataclass(frozen=True)
class TAR:
    """Two phases by step number: random mapping for the first `mapping` share of the steps, then tamper resistance.

    Retain data D_r is `pair.harmless` and, where there is one, `pair.retain`; h_l are the embedding and every block's
    output, the last one normed. What follows is the authors' code, which made the paper's numbers.
    mapping     mean over states and tokens of 1 - |cos(h_l(x), r[token])| on the harmful text, r a random table, plus
                CE on D_r.
    tampering   an attacker takes K = `inner_steps` AdamW steps on `pair.extra`. At every `every`-th of its points w_k
                the gradient of L_TR on `pair.held_out`, prompts it never trains on (a fifth of the data), is taken and
                applied to w (first order), times `weight` x exp(`decay` (k - K)). L_TR is the negative entropy of the
                outputs ("entropy"), or -min(CE, `max_ascent`) ("ce"). Plus `retain_weight` x (CE on D_r + mean over
                states of |h_l(w) - h_l(reference)| per token).

    The weights exp(...) do not sum to 1: at every 4th step to 1.78 for K 8 and 4.44 for K 64 (the paper's text has
    1/K). Entropy, mapping and drift are over all tokens. `as_published=False` divides the weights by their sum and
    counts response tokens alone.

    The defaults are a short setting of ours. `TAR.paper()` has the paper's K = 64, every 4th, weight 4 and the
    attacker's rate drawn at every step from three. Deviations: CE is over response tokens; padding never counts;
    mapping is the first share of one run, on all prompts, not a run of its own; the attacker has one data set, where a
    third of the authors' attackers train on retain data first; a preference loss for refusals is left out.
    """

    name: ClassVar[str] = "tar"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "harmful", "extra", "held-out", "reference"})
    passes: ClassVar[str] = "K + K/every + 1 f/b + 1 reference f; 2 f/b while mapping"
    source: ClassVar[str] = "Tamirisa et al., ICLR 2025, arXiv 2408.00761"
    alone: ClassVar[str] = "its first phase undoes what others protect"
    shards: ClassVar[bool] = True
    broken_by: ClassVar[str] = "longer warm-up with a cosine schedule, LoRA, other fine-tuning data (2412.07097)"

    inner_steps: int = 8
    every: int = 4
    inner_learning_rate: float = 2e-5
    weight: float = 4.0
    retain_weight: float = 1.0
    decay: float = 0.0625
    mapping: float = 0.2
    objective: Literal["entropy", "ce"] = "entropy"
    max_ascent: float = 20.0
    inner_learning_rates: tuple[float, ...] = ()
    as_published: bool = True

    @staticmethod
    def paper() -> TAR:
        """The paper's horizon: about 80 passes a step, 750 steps at rate 2e-5 with 8 rows."""
        return TAR(inner_steps=64, every=4, weight=4.0, decay=0.0625, inner_learning_rates=(2e-6, 2e-5, 4e-5))

    @property
    def inner_batches(self) -> int:
        """One harmful batch an inner step."""
        return self.inner_steps

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: mapping and retain, or tamper (weighted sum of L_TR), retain and drift."""
        kept = kept_rows(pair)
        if pair.step < self.mapping * pair.steps:
            return self._map(model, pair, kept)
        terms = self._tamper(model, pair) | self._keep(model, need_reference(pair, self.name), kept)
        retain = terms["retain"] + terms["drift"]
        return {"loss": self.weight * terms["tamper"] + self.retain_weight * retain} | terms

    def _map(self, model: nn.Module, pair: Pair, kept: Batch) -> dict[str, float]:
        tokens = counted(pair.harmful, everything=self.as_published)
        loss = mapping_loss(model, pair.harmful, tokens, _random_table(model, pair))
        loss.backward()
        retain = response_ce(model, kept)
        (self.retain_weight * retain).backward()
        terms = {"mapping": loss.item(), "retain": retain.item()}
        return {"loss": terms["mapping"] + self.retain_weight * terms["retain"]} | terms

    def _tamper(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        share = self.shares()
        if self.weight == 0 or not share:
            return {"tamper": 0.0}
        batches, judged = need_extra(pair, self.name, self.inner_steps), need_held_out(pair, self.name)
        sum_, values = Running(), []

        def after(k: int) -> None:
            if k in share:
                grads, value = gradient(model, lambda: self._resist(model, judged))
                sum_.add(share[k], grads)
                values.append(value * share[k])

        simulate(model, batches, self._rate(pair), "adamw", weight_decay=WEIGHT_DECAY, after=after)
        accumulate(model, sum_.total, self.weight)
        return {"tamper": sum(values)}

    def shares(self) -> dict[int, float]:
        """The weight of each point k along the attack at which the gradient is taken."""
        points = range(self.every, self.inner_steps + 1, self.every)
        raw = {k: math.exp(self.decay * (k - self.inner_steps)) for k in points}
        total = 1.0 if self.as_published else sum(raw.values())
        return {k: weight / total for k, weight in raw.items()}

    def _rate(self, pair: Pair) -> float:
        if not self.inner_learning_rates:
            return self.inner_learning_rate
        random = generator(pair.seed, pair.step, "cpu", "tar/rate")
        return self.inner_learning_rates[int(torch.randint(len(self.inner_learning_rates), (1,), generator=random))]

    def _resist(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.objective == "ce":
            return -capped(response_ce(model, batch), self.max_ascent)
        log_p = log_softmax(self._outputs(model, batch), -1)
        return (log_p.exp() * log_p).sum(-1).mean()

    def _outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, V) at every token, or at those that predict a response token; in fp32 or wider."""
        if not self.as_published:
            logits, _ = response_logits(model, batch)
            return logits.to(wide(logits.dtype))
        logits = forward(model, batch, keep=0)[batch.attention_mask.bool()]
        return logits.to(wide(logits.dtype))

    def _keep(self, model: nn.Module, reference: nn.Module, kept: Batch) -> dict[str, float]:
        tokens = counted(kept, everything=self.as_published)
        states, loss = observed(model, lambda: response_ce(model, kept))
        with torch.no_grad():
            before = at_tokens(hidden_states(reference, kept), tokens)
        drift = (at_tokens(states, tokens) - before).norm(dim=-1).mean()
        (self.retain_weight * (loss + drift)).backward()
        return {"retain": loss.item(), "drift": drift.item()}


def mapping_loss(model: nn.Module, batch: Batch, tokens: Tensor, table: Tensor) -> Tensor:
    """Mean of 1 - |cos(h, table[token])| over the hidden states and the tokens (B, T) that count."""
    states = at_tokens(hidden_states(model, batch), tokens)
    return (1 - cosine_similarity(states, table[batch.input_ids[tokens]][None].to(states.dtype), dim=-1).abs()).mean()


def _random_table(model: nn.Module, pair: Pair) -> Tensor:
    """One random direction per token, the same at every step."""
    weight = parts(model).embedding.weight
    assert isinstance(weight, Tensor)
    device = pair.harmful.input_ids.device
    return torch.randn(weight.shape, generator=generator(pair.seed, 0, device, "tar"), device=device)
