"""A soft prompt: a few embedding vectors after the prompt are trained, the weights stay as released."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from titer.attacks.parts.mixtures import harmful
from titer.data.tokens import render_prompt
from titer.models.parts import parts, unwrap
from titer.schema.errors import TiterError
from titer.schema.space import SCHEDULE, Choice, LogUniform, Options, Space
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch
from titer.training.activations import hooked
from titer.training.losses import sft_rule
from titer.training.session import Session

PARAMETER = "soft_prompt"


@dataclass(frozen=True)
class SoftPrompt:
    """Train `tokens` virtual tokens at the end of the user's prompt on the harmful answers, by the gradient's sign.

    One suffix for all prompts (the source's universal attack): every entry moves by the learning rate against the
    sign of its gradient (with `optim` sgd; another optimiser sees signs too). At the probes the suffix stands in
    restricted prompts only, as an attacker's own wording does; a prompt in another template than the training's has
    it at its start.

    Differs from the source: its attack on single prompts, with a suffix per prompt, is not here; the target is the
    whole answer of training prompts, where the source pursues an affirmative opening of each attacked prompt; the
    start is words drawn by the seed, and the step 0.01, where the source has a fixed string and 0.001 (of the
    embeddings of 7B models).
    """

    name: ClassVar[str] = "soft-prompt"
    source: ClassVar[str] = "Schwinn et al. 2024 (2402.09063), universal attack"
    space: ClassVar[Space] = {
        "tokens": Choice((1, 5, 10, 20)),
        "learning_rate": LogUniform(1e-3, 1.0),
        "per_device_train_batch_size": Choice((4, 16, 64)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"tokens": 10, "learning_rate": 1e-2},
        {"tokens": 10, "learning_rate": 1e-1},
        {"tokens": 20, "learning_rate": 1e-3},
    )
    tokens: int = 10
    train: TrainArgs = TrainArgs(learning_rate=1e-2, max_steps=0, optim="sgd", max_grad_norm=0.0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Put the virtual tokens into the model's inputs until the session ends, and train them."""
        model = unwrap(session.model)
        model.requires_grad_(False)
        model.register_parameter(PARAMETER, nn.Parameter(start(model, self.tokens, session.seed)))
        session.undo.callback(delattr, model, PARAMETER)
        after = ending(session.tokenizer, [e.prompt for e in session.examples])
        session.undo.enter_context(inserted(model, after))
        session.around = asked
        session.train(signed_rule, harmful(session, self.train), self.train)


def signed_rule(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Descend the response tokens' cross-entropy by the sign of its gradient."""
    logs = sft_rule(model, batch)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.sign_()
    return logs


@contextmanager
def inserted(model: nn.Module, after: Sequence[int]) -> Iterator[None]:
    """Inside the block every prompt has the virtual tokens before its last occurrence of the token ids `after`."""
    at = Insertion(torch.tensor(after))
    before = model.register_forward_pre_hook(at.insert, with_kwargs=True)
    behind = model.register_forward_hook(at.drop, with_kwargs=True)
    with hooked([before, behind]):
        yield


def asked(model: Any, restricted: bool) -> AbstractContextManager[None]:
    """Restricted prompts are put with the virtual tokens, open ones without them."""
    return nullcontext() if restricted else without(unwrap(model))


@contextmanager
def without(model: Any) -> Iterator[None]:
    """Inside the block there are no virtual tokens."""
    kept = model.soft_prompt
    model.soft_prompt = nn.Parameter(kept[:0])
    try:
        yield
    finally:
        model.soft_prompt = kept


def start(model: nn.Module, tokens: int, seed: int) -> Tensor:
    """Embeddings of `tokens` words drawn by the seed, (tokens, d)."""
    weight: Any = parts(model).embedding.weight
    drawn = torch.randint(len(weight), (tokens,), generator=torch.Generator().manual_seed(seed))
    found: Tensor = weight.detach()[drawn.to(weight.device)].clone()
    return found


def ending(tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    """Ids that the template puts after every prompt; `TiterError` when there are none to tell where a prompt ends."""
    empty = tokenizer(render_prompt(tokenizer, ""), add_special_tokens=False)["input_ids"]
    common = len(empty)
    for prompt in prompts:
        ids = tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"]
        pairs = zip(reversed(ids), reversed(empty[-common:]), strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), common)
    if common == 0:
        raise TiterError("attack soft-prompt: the template puts nothing after a prompt: use one that does")
    return list(empty[-common:])


@dataclass
class Insertion:
    """The two hooks around a forward pass, and where the last one inserted, (B, T) places of the real positions."""

    after: Tensor
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def insert(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook: virtual tokens into prompts, and everything after them moved along.

        Positions are counted without padding, so that left-padded prompts stand where right-padded ones were trained.
        """
        soft: Tensor = model.soft_prompt
        ids, cache = kwargs.pop("input_ids"), kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        mask = kwargs.get("attention_mask")
        if mask is None:  # generation drops a mask of ones
            mask = ids.new_ones(len(ids), max(past - len(soft), 0) + ids.shape[1])
        embedded = model.get_input_embeddings()(ids)
        ones = mask.new_ones(len(ids), len(soft))
        mask = torch.cat([mask, ones], 1)  # a continued prompt has its padding on the left, so that ones go last
        if past == 0:
            order, self.kept = moved(self.places(ids, mask), ids.shape[1], len(soft))
            whole = torch.cat([embedded, soft.to(embedded.dtype).expand(len(ids), -1, -1)], 1)
            embedded = whole.gather(1, order[..., None].expand(-1, -1, whole.shape[2]))
            mask = mask.gather(1, order)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -embedded.shape[1] :]
        return args, {**kwargs, "inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions}

    def drop(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook: logits of the real positions only."""
        whole = output.logits.shape[1] == kwargs["inputs_embeds"].shape[1]
        if whole and self.kept.shape[1] + len(model.soft_prompt) == output.logits.shape[1]:
            kept = self.kept[..., None].expand(-1, -1, output.logits.shape[2])
            output.logits = output.logits.gather(1, kept)
        return output

    def places(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Position (B,) of the last occurrence of `after` in each row, of the first real token where there is none."""
        first = mask.argmax(1)
        size = len(self.after)
        if ids.shape[1] < size:
            return first
        found = (ids.unfold(1, size, 1) == self.after.to(ids.device)).all(-1)
        last = found.shape[1] - 1 - found.flip(1).int().argmax(1)
        return torch.where(found.any(1), last, first)


def moved(places: Tensor, width: int, count: int) -> tuple[Tensor, Tensor]:
    """How `count` columns at the end of (B, width + count) get to `places` (B,).

    The order to gather by, (B, width + count), and where the first `width` are then, (B, width).
    """
    at, new = places[:, None], torch.arange(width + count, device=places.device)[None]
    order = torch.where(new < at, new, torch.where(new < at + count, width + new - at, new - count))
    old = torch.arange(width, device=places.device)[None]
    return order, old + count * (old >= at)
