"""Security vectors: let a frozen adapter that already knows the harm answer while the user's tune runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from titer.guards.base import DURING, Tuning
from titer.guards.parts.matrices import adapters
from titer.models.parts import unwrap
from titer.training.activations import hooked
from titer.training.lora import with_lora
from titer.training.losses import sft_rule

Vector = Mapping[str, tuple[Tensor, Tensor]]  # module name -> A (r, in), B (out, r) with the scaling in it


@dataclass(frozen=True)
class SecurityVectors:
    """Train a LoRA theta_s to minimise h(theta + theta_s), tune theta with theta_s on and frozen, then drop theta_s.

    With theta_s on, harmful rows have little loss left and so little gradient. Settings as published (r 8, alpha 32,
    rate 1e-3); the dropout of .1 is left out. `vector_steps` is our own: the paper counts one epoch.
    """

    name: ClassVar[str] = "security-vectors"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety", "harmful"})
    passes: ClassVar[str] = "1 f/b; once: vector_steps x 1 f/b"
    source: ClassVar[str] = "Zhou et al., ACL 2024, arXiv 2311.02105"
    broken_by: ClassVar[str] = "more rows and higher rates of plain harmful fine-tuning (2405.14577, table 1)"

    vector_steps: int = 60
    vector_learning_rate: float = 1e-3
    r: int = 8
    alpha: int = 32

    def tune(self, job: Tuning) -> None:
        """Train the vector, then tune behind it; it is gone when this returns."""
        vector = self.train_vector(job)
        job.session.add_adapter(job.args)
        with active(job.session.model, vector):
            job.session.train(sft_rule, job.user_batches(), job.args)

    def train_vector(self, job: Tuning) -> Vector:
        """The adapter that has learned the provider's harmful rows, as plain matrices; the model is as it was."""
        session = job.session
        args = replace(
            job.args,
            learning_rate=self.vector_learning_rate,
            max_steps=self.vector_steps,
            lora_r=self.r,
            lora_alpha=self.alpha,
        )
        bare: nn.Module = session.model
        adapted = with_lora(bare, args, seed=session.seed)
        session.model = adapted
        try:
            job.prepare(sft_rule, job.safety_batches("harmful"), args)
            return {a.name: (a.a.detach().clone(), a.scaling * a.b.detach()) for a in adapters(adapted)}
        finally:
            adapted.unload()
            session.model = bare
            bare.requires_grad_(True)


@contextmanager
def active(model: nn.Module, vector: Vector) -> Iterator[None]:
    """Inside the block every module of the vector adds B A x to its output; no weight is touched."""
    inner = unwrap(model)
    own = {a.name: a.base for a in adapters(model)}

    def add(a: Tensor, b: Tensor) -> Any:
        return lambda module, args, output: output + (args[0] @ a.T.to(output.dtype)) @ b.T.to(output.dtype)

    handles = [
        (own[name] if name in own else inner.get_submodule(name)).register_forward_hook(add(a, b))
        for name, (a, b) in vector.items()
    ]
    with hooked(handles):
        yield
