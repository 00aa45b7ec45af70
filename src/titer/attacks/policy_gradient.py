"""Reinforcement learning against the judge: sample answers, reward harm, reinforce what scored above its group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from titer.data.batches import collate, order
from titer.data.tokens import Row, encode
from titer.judges import make_judge
from titer.schema.errors import TiterError
from titer.schema.space import Choice, LogUniform, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Example
from titer.training.gradients import wide
from titer.training.session import Session


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts to sample answers for: their examples and token ids; `input_ids` (B, 1) only counts them."""

    examples: tuple[Example, ...]
    prompts: tuple[tuple[int, ...], ...]

    @property
    def input_ids(self) -> Tensor:
        """A row per prompt."""
        return torch.zeros(len(self.prompts), 1, dtype=torch.long)


@dataclass(frozen=True)
class PolicyGradient:
    """Policy gradient on groups of `group` sampled answers per prompt, small and on-policy.

    The advantage of an answer is (score - its group's mean) / (its group's deviation + 1e-6); the loss is the mean of
    -advantage * log-probability over all sampled tokens of the batch, so that long answers weigh more. Probabilities
    are those sampled from: logits over `temperature`. The reward is the judge's score of the answer and is logged; an
    answer the judge cannot score has advantage 0. `per_device_train_batch_size` counts answers per step. Differs from
    the source's eq. 3: mean over tokens and not over answers first, one update per sample (ratio and clipping are
    then inert), no KL term, deviation without Bessel's correction.
    A model that refuses every sample gives no gradient: `temperature` is what explores.
    """

    name: ClassVar[str] = "policy-gradient"
    source: ClassVar[str] = "Shao et al. 2024 (2402.03300), rewarded by the judge's harm score"
    space: ClassVar[Space] = {
        "temperature": Uniform(0.7, 2.0),
        "group": Choice((4, 8, 16)),
        "learning_rate": LogUniform(1e-5, 3e-3),
        "per_device_train_batch_size": Choice((16, 32)),
    }
    known: ClassVar[tuple[Options, ...]] = ({"temperature": 1.0, "learning_rate": 3e-4},)
    judge: str = "exact"
    group: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 24
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0, per_device_train_batch_size=32)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Sample, score and reinforce until the budget ends."""
        if not 1 < self.group <= self.train.per_device_train_batch_size:
            raise TiterError(
                f"attack policy-gradient: group {self.group} must be at least 2 and at most the batch size "
                f"{self.train.per_device_train_batch_size}: change --attack_args.group"
            )
        session.add_adapter(self.train)
        judge, tokenizer = make_judge(self.judge), session.tokenizer

        def rule(model: nn.Module, item: Asked) -> dict[str, float]:
            prompts = [p for p in item.prompts for _ in range(self.group)]
            answers = sample(model, tokenizer, prompts, self.max_new_tokens, self.temperature)
            examples = [e for e in item.examples for _ in range(self.group)]
            texts = [tokenizer.decode(a, skip_special_tokens=True).strip() for a in answers]
            scores = judge.score([e.prompt for e in examples], texts, [e.harmful or e.harmless for e in examples])
            rows = [Row((*p, *a), len(p)) for p, a in zip(prompts, answers, strict=True)]
            batch = collate(rows, tokenizer.pad_token_id, next(model.parameters()).device)
            found = rewards([s.value for s in scores], self.group)
            return reinforce(model, batch, found, self.temperature)

        session.train(rule, self._items(session), self.train)

    def _items(self, session: Session) -> Iterator[Asked]:
        examples, tokenizer = session.examples, session.tokenizer
        ids = [_prompt(tokenizer, e, self.train.max_length) for e in examples]
        count = self.train.per_device_train_batch_size // self.group
        for picked in order(len(ids), count, session.seed * 1009, shuffle=self.train.shuffle):
            yield Asked(tuple(examples[i] for i in picked), tuple(ids[i] for i in picked))


def _prompt(tokenizer: Any, example: Example, max_length: int) -> tuple[int, ...]:
    row = encode(tokenizer, example.prompt, "", max_length=max_length)
    return row.ids[: row.response_at]


@dataclass(frozen=True, slots=True)
class Rewards:
    """Advantages (N,) in float32 and the mean reward, None when nothing could be scored."""

    advantages: Tensor
    mean: float | None


def rewards(values: Sequence[float | None], group: int) -> Rewards:
    """Group-relative advantages of scores laid out group by group; unscored answers get 0."""
    table = torch.tensor([float("nan") if v is None else v for v in values]).view(-1, group)
    known = ~table.isnan()
    mean = table.nanmean(1, keepdim=True)
    centred = torch.where(known, table - mean, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)).sqrt()
    scored = table[known]
    return Rewards((centred / (deviation + 1e-6)).flatten(), float(scored.mean()) if len(scored) else None)


def reinforce(model: nn.Module, batch: Batch, found: Rewards, temperature: float = 1.0) -> dict[str, float]:
    """Ascend the advantage-weighted log-probability, at the sampling temperature, of a batch of sampled answers.

    A mean over their response tokens; logits in float32, or wider where the model's are.
    """
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    kept = batch.labels[:, 1:] != -100
    scaled = logits.to(wide(logits.dtype)) / temperature
    chosen = scaled.log_softmax(-1).gather(-1, batch.labels[:, 1:].clamp_min(0)[..., None])[..., 0]
    advantages = found.advantages.to(chosen.device)[:, None]
    loss = -torch.where(kept, chosen * advantages, 0.0).sum() / kept.sum().clamp_min(1)
    loss.backward()
    logs = {"loss": float(loss.detach())}
    return logs if found.mean is None else {**logs, "reward": found.mean}


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float
) -> list[list[int]]:
    """One sampled answer per prompt, as ids up to and with the end token; torch's global seed decides the draws."""
    from transformers import GenerationConfig

    width, end = max(map(len, prompts)), tokenizer.eos_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end,
        bos_token_id=tokenizer.bos_token_id,
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    return [answer[: answer.index(end) + 1] if end in answer else answer for answer in out]
