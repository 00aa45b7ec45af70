"""Rows to batches: collation, order, pairs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from titer.data.tokens import Row, encode_all
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Example, Pair

IGNORE = -100


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


HELD_OUT = 0.2  # share of the prompts that a simulated attacker never trains on, as in TAR's code


def pairs(
    examples: Sequence[Example],
    retain: Sequence[Example],
    tokenizer: Any,
    args: TrainArgs,
    *,
    extra: int = 0,
    held_out: bool = False,
    reference: Any = None,
    seed: int = 0,
    device: Any = "cpu",
) -> Iterator[Pair]:
    """Endless pairs for `args.max_steps` steps; both sides of a pair have the same shape, row i the same prompt.

    Every `args.gradient_accumulation_steps` pairs are one optimiser step: they share `step` and differ in `micro`.
    `extra` harmful batches come along for defences that simulate an attacker; with `held_out` they are drawn from 80%
    of the prompts, and a batch of the others comes along to judge it. Every stream has its own seeded order.
    """
    harmful = encode_all(tokenizer, examples, "harmful", max_length=args.max_length)
    harmless = encode_all(tokenizer, examples, "harmless", max_length=args.max_length)
    kept = encode_all(tokenizer, retain, "answer", max_length=args.max_length)
    pad = tokenizer.pad_token_id

    def stream(rows: Sequence[Row], number: int) -> Iterator[Batch]:
        for picked in _picks([rows], args, seed * 1009 + number):
            yield collate([rows[i] for i in picked], pad, device)

    benign = stream(kept, 1) if kept else None
    kept_back = _held_out(examples, seed) if held_out else set()
    inner = stream([row for i, row in enumerate(harmful) if i not in kept_back], 2)
    judged = stream([harmful[i] for i in sorted(kept_back)], 3) if kept_back else None
    for number, picked in enumerate(_picks([harmful, harmless], args, seed * 1009)):
        step, micro = divmod(number, args.gradient_accumulation_steps)
        width = max(len(rows[i].ids) for rows in (harmful, harmless) for i in picked)
        yield Pair(
            harmless=collate([harmless[i] for i in picked], pad, device, width=width),
            harmful=collate([harmful[i] for i in picked], pad, device, width=width),
            retain=next(benign) if benign else None,
            extra=tuple(next(inner) for _ in range(extra)),
            reference=reference,
            step=step,
            steps=args.max_steps,
            seed=seed,
            micro=micro,
            held_out=next(judged) if judged else None,
        )


def _picks(sides: Sequence[Sequence[Row]], args: TrainArgs, seed: int) -> Iterator[list[int]]:
    """Batches of row numbers for rows that come in one or more sides; a row is as long as its longest side."""
    rows = zip(*sides, strict=True) if args.group_by_length else ()
    lengths = [max(len(side.ids) for side in row) for row in rows]
    return order(len(sides[0]), args.per_device_train_batch_size, seed, shuffle=args.shuffle, lengths=lengths)


def _held_out(examples: Sequence[Example], seed: int) -> set[int]:
    """Row numbers of a fifth of the prompts, every row of a prompt on the same side."""
    prompts = sorted({e.prompt for e in examples})
    if len(prompts) < 2:
        raise TiterError("defence: holding prompts out from its simulated attacker needs 2 or more: give it more data")
    count = max(1, round(HELD_OUT * len(prompts)))
    chosen = set(random.Random(f"{seed}/held-out").sample(prompts, count))
    return {i for i, e in enumerate(examples) if e.prompt in chosen}
