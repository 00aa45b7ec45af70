"""From examples to tensors: templates, tokens, response-only labels, batches and their seeded order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from titer.errors import TiterError
from titer.specs import Template
from titer.types import Batch, Example

IGNORE = -100
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of prompt + response and where the response starts."""

    ids: tuple[int, ...]
    response_at: int


def render_prompt(tokenizer: Any, prompt: str, template: Template = Template()) -> str:
    """The text before the response: the prompt in its template, up to and with the assistant turn's start."""
    user = f"{template.prefix}{prompt}{template.suffix}"
    if template.kind == "chat" and tokenizer.chat_template:
        turns = [{"role": "system", "content": template.system}] if template.system else []
        turns.append({"role": "user", "content": user})
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) + template.prefill
    system = f"{template.system}\n\n" if template.system else ""
    if template.kind == "alpaca":
        return system + ALPACA.format(prompt=user) + template.prefill
    return f"{system}Question: {user}\nAnswer: {template.prefill}"


def encode(tokenizer: Any, prompt: str, response: str, template: Template = Template(), max_length: int = 256) -> Row:
    """One prompt and its response as ids; the response ends with the end-of-turn token and is cut at `max_length`.

    Raises `TiterError` when the prompt alone fills `max_length`, and for a tokenizer that cannot end a text.
    """
    if tokenizer.eos_token_id is None:
        raise TiterError("tokenizer: no end-of-text token to end a response with: set its eos_token")
    before = tokenizer(render_prompt(tokenizer, prompt, template), add_special_tokens=False)["input_ids"]
    answer = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    if len(before) >= max_length:
        raise TiterError(
            f"prompt of {len(before)} tokens leaves no room for a response within max_length {max_length}: "
            f"raise --max_length or drop it: {prompt[:60]!r}"
        )
    return Row(tuple((before + answer)[:max_length]), len(before))


def encode_all(
    tokenizer: Any, examples: Sequence[Example], side: str, template: Template = Template(), max_length: int = 256
) -> list[Row]:
    """Rows for one side of the examples: `harmful`, `harmless`, or `answer` (harmful where there is one)."""
    return [encode(tokenizer, e.prompt, _text(e, side), template, max_length) for e in examples]


def _text(example: Example, side: str) -> str:
    if side == "answer":
        return example.harmful or example.harmless
    return example.harmful if side == "harmful" else example.harmless


def collate(rows: Sequence[Row], pad_id: int, device: str | torch.device = "cpu", *, width: int = 0) -> Batch:
    """Right-padded batch; labels are `IGNORE` on prompt and padding, whatever ids those tokens have.

    `width` pads further than the longest row, so that the two sides of a pair get the same shape.
    """
    width = max(width, *(len(r.ids) for r in rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row.ids)
        ids[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = 1
        labels[i, row.response_at : len(tokens)] = tokens[row.response_at :]
    return Batch(ids.to(device), mask.to(device), labels.to(device))


def flatten(rows: Sequence[Row], device: str | torch.device = "cpu") -> Batch:
    """The rows end to end in one without padding (TRL's `padding_free`); no row predicts the start of the next."""
    ids = torch.tensor([t for r in rows for t in r.ids])[None]
    positions = torch.tensor([i for r in rows for i in range(len(r.ids))])[None]
    response = torch.tensor([i >= max(r.response_at, 1) for r in rows for i in range(len(r.ids))])[None]
    labels = torch.where(response, ids, IGNORE)
    return Batch(ids.to(device), torch.ones_like(ids).to(device), labels.to(device), positions.to(device))


def order(
    n: int, batch_size: int, seed: int, *, shuffle: bool = True, lengths: Sequence[int] = ()
) -> Iterator[list[int]]:
    """Endless batches of row numbers: every epoch a fresh permutation from (seed, epoch), or the given order.

    An epoch's last batch is filled from the next epoch, so that every batch has `batch_size` rows (fewer only when
    there are fewer rows than that: then rows repeat across epochs, not within a batch). With `lengths` rows of like
    length share a batch (`group_by_length`).
    """
    size = min(batch_size, n)
    if size < 1:
        raise TiterError(
            f"training: no batch of {batch_size} rows out of {n}: give it rows and a batch size of 1 or more"
        )
    pending: list[int] = []
    epoch = 0
    while True:
        while len(pending) < size:
            permutation = list(range(n))
            if shuffle:
                random.Random(f"{seed}/{epoch}").shuffle(permutation)
            if lengths:
                fill = -len(pending) % size  # these complete the batch that the last epoch has begun
                permutation[fill:] = grouped(permutation[fill:], lengths, size, f"{seed}/{epoch}/groups")
            pending += permutation
            epoch += 1
        yield pending[:size]
        pending = pending[size:]


def grouped(permutation: Sequence[int], lengths: Sequence[int], size: int, seed: str) -> list[int]:
    """The permutation with rows of like length side by side.

    As in Hugging Face's Trainer, every 50 batches (a quarter of the rows, where that is less) are sorted by length;
    here the batches are then shuffled again, so that training does not run from long to short.
    """
    span = size * max(min(len(permutation) // (4 * size), 50), 1)
    found: list[int] = []
    for start in range(0, len(permutation), span):
        group = sorted(permutation[start : start + span], key=lambda i: -lengths[i])
        batches = [group[i : i + size] for i in range(0, len(group), size)]
        full = [b for b in batches if len(b) == size]
        random.Random(f"{seed}/{start}").shuffle(full)
        found += [i for b in (*full, *(b for b in batches if len(b) < size)) for i in b]
    return found
