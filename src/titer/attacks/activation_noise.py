"""Noise in the activations of one layer while the model answers; the weights stay as released."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from titer.attacks.parts import directions as d
from titer.models.parts import parts
from titer.schema.space import Choice, LogUniform, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.activations import first, hooked
from titer.training.gradients import generator
from titer.training.session import Session


@dataclass(frozen=True)
class ActivationNoise:
    """Add Gaussian noise to the output of one decoder layer at every position while restricted prompts are answered.

    The noise of a position has `scale` times the norm of its hidden state (instance-normalised), and follows from
    the seed, the layer and the number of the forward pass. `layer` is a share of the depth; -1 tries all layers and
    takes the one under which the attacker's own harmful answers are likeliest against refusals, forwards charged.
    Nothing is trained: the rate is that of step 0. The source adds noise of one size to all layers at once.
    """

    name: ClassVar[str] = "activation-noise"
    source: ClassVar[str] = "after Shahani et al. 2025 (2505.13500), one layer at a time"
    space: ClassVar[Space] = {
        "scale": LogUniform(0.03, 2.0),
        "layer": Choice((-1.0, 0.0, 0.25, 0.5, 0.75, 1.0)),
    }
    known: ClassVar[tuple[Options, ...]] = ({"scale": 0.1}, {"scale": 0.3}, {"scale": 0.6})
    scale: float = 0.3
    layer: float = -1.0
    n: int = 32
    test_template: None = None

    def run(self, session: Session) -> None:
        """Choose the layer if asked, and grade the model under noise."""
        at = self.chosen(session)

        def asked(model: nn.Module, restricted: bool) -> AbstractContextManager[None]:
            return noised(model, at, self.scale, session.seed) if restricted else nullcontext()

        session.around = asked
        session.probe()

    def chosen(self, session: Session) -> int:
        """The number of the layer that gets the noise."""
        depth = len(parts(session.model).layers)
        if self.layer >= 0:
            return min(int(self.layer * depth), depth - 1)
        examples = session.examples[: self.n]
        answers = session.encode(examples, TrainArgs())
        refusals = session.encode([e for e in examples if e.harmful and e.harmless], TrainArgs(), side="harmless")
        tokens = d.Tokens(session.tokenizer.pad_token_id, session.device)
        found: list[float] = []
        for layer in range(depth):
            with session.metered(), noised(session.model, layer, self.scale, session.seed):
                found.append(d.compliance(session.model, answers, refusals, tokens))
        return max(range(depth), key=found.__getitem__)


@contextmanager
def noised(model: nn.Module, layer: int, scale: float, seed: int) -> Iterator[None]:
    """Inside the block the layer's output h is h + scale |h| z / sqrt(d), z standard normal per entry."""
    passes = 0

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal passes
        hidden = first(output)
        draw = generator(seed, passes, stream=f"noise/{layer}")
        passes += 1
        moved = hidden + scaled_noise(hidden, scale, draw)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    with hooked([parts(model).layers[layer].register_forward_hook(add)]):
        yield


def scaled_noise(hidden: Tensor, scale: float, draw: torch.Generator) -> Tensor:
    """Noise like `hidden` (..., d) whose expected squared norm is scale^2 times that of each state."""
    noise = torch.randn(hidden.shape, generator=draw).to(hidden)
    size: Tensor = hidden.norm(dim=-1, keepdim=True) / hidden.shape[-1] ** 0.5
    return scale * size * noise
