"""Two processes that hold the weights in shards get every loss and gradient of one process, in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from titer.defences import DEFENCES, configure
from titer.runs.checks import sharded

pytestmark = pytest.mark.slow
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("tar", {"mapping": 1.0}),
    *((name, {}) for name in sorted({*sharded(DEFENCES)} - {"tar", "mlac"})),
    ("tar", {"inner_steps": 3, "every": 1, "mapping": 0.0}),
    ("mlac", {"inner_steps": 3}),
]
Found = list[tuple[dict[str, float], dict[str, torch.Tensor]]]


def found_by(rank: int, folder: str, kind: str, tools: Any) -> None:
    """One of two processes; the first keeps what both found."""
    from torch import distributed

    from titer.models.shards import distribute, whole

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: Found = []
    for name, options in SETTINGS:
        model = distribute(tools.build("llama-tied"), kind, "cpu")  # type: ignore[arg-type]
        reference = distribute(tools.reference(), kind, "cpu")  # type: ignore[arg-type]
        pair = dataclasses.replace(tools.pair(), reference=reference)
        before = {n: whole(p.detach()).clone() for n, p in model.named_parameters()}
        terms, grads = tools.step(configure(name, options), model, pair)
        assert all(torch.equal(whole(p.detach()), before[n]) for n, p in model.named_parameters())
        found.append((terms, {n: whole(g) for n, g in grads.items()}))
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["fsdp2", "multi_gpu"])
def test_every_loss_and_gradient_is_that_of_one_process(tools: Any, tmp_path: Path, kind: str) -> None:
    """Four rows of each batch, two of the retain batch: all are shared out. Embedding and head are tied."""
    torch.multiprocessing.spawn(found_by, (str(tmp_path), kind, tools), 2)
    found: Found = torch.load(tmp_path / "found.pt")
    for (name, options), (terms, grads) in zip(SETTINGS, found, strict=True):
        pair = dataclasses.replace(tools.pair(), reference=tools.reference())
        expected, own = tools.step(configure(name, options), tools.build("llama-tied"), pair)
        assert terms == pytest.approx(expected, rel=1e-9), name
        assert tools.gap(grads, own) < 1e-9, name
