"""Attack step overhead: titer's metered loop against a bare PyTorch loop, interleaved in one run.

    OMP_NUM_THREADS=1 python benchmarks/attack_step.py

Both do the same arithmetic on the same batches (tests/test_train.py holds that the weights agree); the figure is
the median over blocks of the ratio of their process CPU times, so that other load disturbs it little. Goal: <= 1.05.
"""

from __future__ import annotations

import statistics
import time

import torch

from titer.models.load import load_model
from titer.models.weights import restore, snapshot
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch
from titer.training.loop import train
from titer.training.losses import answer_ce as cross_entropy
from titer.training.losses import sft_rule
from titer.training.meter import Meter

STEPS, BLOCKS = 30, 12


def batches(vocabulary: int, rows: int = 16, width: int = 32) -> list[Batch]:
    made = []
    for i in range(STEPS):
        ids = torch.randint(8, vocabulary, (rows, width), generator=torch.Generator().manual_seed(i))
        labels = ids.clone()
        labels[:, : width // 2] = -100
        made.append(Batch(ids, torch.ones_like(ids), labels))
    return made


def bare(model: torch.nn.Module, data: list[Batch]) -> float:
    """A plain loop with AdamW and clipping; CPU seconds."""
    started = time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, foreach=True)
    model.train()
    for batch in data:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    return time.process_time() - started


def metered(model: torch.nn.Module, data: list[Batch]) -> float:
    """titer's loop; CPU seconds."""
    started = time.process_time()
    train(model, sft_rule, data, TrainArgs(learning_rate=1e-4, max_steps=STEPS), meter=Meter())
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_model("organism/aligned")
    data, saved = batches(len(tokenizer)), snapshot(model)
    ratios, times = [], []
    for block in range(BLOCKS + 1):
        found = {}
        for loop in (bare, metered) if block % 2 else (metered, bare):
            restore(model, saved)
            found[loop] = loop(model, data)
        if block:  # the first block warms up
            ratios.append(found[metered] / found[bare])
            times.append(found[bare] / STEPS)
    low, high = sorted(ratios)[1], sorted(ratios)[-2]
    print(f"bare step: {1000 * statistics.median(times):.1f} ms CPU (16 x 32, {BLOCKS} blocks of {STEPS} steps)")
    print(
        f"metered / bare: median {statistics.median(ratios):.3f}, second lowest {low:.3f}, second highest {high:.3f}"
    )


if __name__ == "__main__":
    main()
