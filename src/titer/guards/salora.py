"""SaLoRA: an adapter whose output leaves the directions that safety prompts use alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from titer.guards.base import DURING, Tuning
from titer.guards.parts.matrices import Adapter, adapters, oriented, seen_inputs
from titer.training.activations import hooked
from titer.training.gradients import wide
from titer.training.losses import sft_rule


@dataclass(frozen=True)
class SaLoRA:
    """Tune a LoRA whose update is C B A with C = I - V V^T, V the `safety_rank` first left singular vectors of W X.

    X are the inputs of each adapted module at the tokens of the provider's refusals, their prompts before them, as in
    the code; `as_published=False` takes the prompts' tokens too. C is folded into B
    after the tune, so that the model served is a plain one. Where the provider tunes all weights, an adapter of rank
    `r` takes their place. The paper's initialisation of A and B by the task is left out: B starts at zero.
    """

    name: ClassVar[str] = "salora"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    passes: ClassVar[str] = "1 f/b; once: 1 f on the safety rows and an eigendecomposition a module"
    source: ClassVar[str] = "Li et al., ICLR 2025, arXiv 2501.01765"
    broken_by: ClassVar[str] = "tested by its authors on benign tuning; useless where the user can drop C"

    safety_rank: int = 8
    r: int = 8
    alpha: int = 16
    as_published: bool = True

    def tune(self, job: Tuning) -> None:
        """Find the directions, tune beside them, fold the projection in."""
        args = job.args if job.args.lora_r > 0 else replace(job.args, lora_r=self.r, lora_alpha=self.alpha)
        job.session.add_adapter(args)
        found = adapters(job.session.model)
        spaces = self.spaces(job, found)
        with kept_out(found, spaces):
            job.session.train(sft_rule, job.session.batches(job.user_rows(), args), args)
        with torch.no_grad():
            for adapter, v in zip(found, spaces, strict=True):
                adapter.b.copy_(outside(adapter.b.T, v).T)

    @torch.no_grad()
    def spaces(self, job: Tuning, found: Sequence[Adapter]) -> list[Tensor]:
        """V of each adapted module, (out, safety_rank)."""
        grams: list[Any] = [0.0] * len(found)
        for inputs in seen_inputs(job, [a.base for a in found], "harmless", self.as_published):
            for i, (adapter, x) in enumerate(zip(found, inputs, strict=True)):
                weight = oriented(adapter.base, adapter.base.get_parameter("weight"))
                y = (x @ weight.T).to(wide(x.dtype))
                grams[i] = grams[i] + y.T @ y
        return [
            torch.linalg.eigh(g).eigenvectors[:, -self.safety_rank :].to(a.b.dtype)
            for g, a in zip(grams, found, strict=True)
        ]


def outside(y: Tensor, v: Tensor) -> Tensor:
    """y (..., out) without its part in the span of V."""
    return y - (y @ v) @ v.T


@contextmanager
def kept_out(found: Sequence[Adapter], spaces: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block each adapter's output is C B A x."""

    def project(v: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return outside(output, v.to(output.dtype))

        return hook

    with hooked([a.up.register_forward_hook(project(v)) for a, v in zip(found, spaces, strict=True)]):
        yield
