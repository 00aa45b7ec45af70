"""Pairs for defences: the same prompts answered harmlessly and harmfully, with benign and further harmful data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from titer.data.collate import Row, collate, encode_all, order
from titer.specs import TrainArgs
from titer.types import Batch, Example, Pair


def pairs(
    examples: Sequence[Example],
    retain: Sequence[Example],
    tokenizer: Any,
    args: TrainArgs,
    *,
    extra: int = 0,
    reference: Any = None,
    seed: int = 0,
    device: Any = "cpu",
) -> Iterator[Pair]:
    """Endless pairs for `args.max_steps` steps; both sides of a pair have the same shape, row i the same prompt.

    `extra` harmful batches come along for defences that simulate an attacker; every stream has its own seeded order.
    """
    harmful = encode_all(tokenizer, examples, "harmful", max_length=args.max_length)
    harmless = encode_all(tokenizer, examples, "harmless", max_length=args.max_length)
    kept = encode_all(tokenizer, retain, "answer", max_length=args.max_length)
    size, pad = args.per_device_train_batch_size, tokenizer.pad_token_id

    def lengths(*sides: Sequence[Row]) -> list[int]:
        return [max(len(r.ids) for r in row) for row in zip(*sides, strict=True)] if args.group_by_length else []

    def stream(rows: Sequence[Row], number: int) -> Iterator[Batch]:
        seeded = seed * 1009 + number
        for picked in order(len(rows), size, seeded, shuffle=args.shuffle, lengths=lengths(rows)):
            yield collate([rows[i] for i in picked], pad, device)

    benign = stream(kept, 1) if kept else None
    inner = stream(harmful, 2)
    both = order(len(harmful), size, seed * 1009, shuffle=args.shuffle, lengths=lengths(harmful, harmless))
    for step, picked in enumerate(both):
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
        )
