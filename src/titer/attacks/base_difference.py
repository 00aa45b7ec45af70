"""The defence is the difference: what a defended model adds to the one it came from, by rank, is taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.attacks.parts.edits import matrices, tuned_after
from titer.models.load import load_beside
from titer.schema.errors import TiterError
from titer.schema.space import TUNE_AFTER, Choice, LogUniform, Options, Space, Uniform
from titer.schema.specs import TrainArgs
from titer.training.meter import charge
from titer.training.session import Session

SVD_FLOPS = 14.0  # times m n min(m, n): a thin decomposition with both sides (Golub and Van Loan, table 8.6.1)


@dataclass(frozen=True)
class BaseDifference:
    """Decompose W - W_reference of every decoder matrix and take `strength` times its largest parts away.

    How many is each matrix's own rank: the smallest number of singular values that hold `energy` of the squared
    norm; a matrix where that is more than `most` of its full rank is left, since its change has no low rank. Both 1
    remove the whole difference, `strength` above 1 goes beyond the reference. `reference` names the model the
    defence started from, which the attacker has; there is no default. Norms, embedding and head stay.
    """

    name: ClassVar[str] = "base-difference"
    source: ClassVar[str] = "design: the converse of LoX (2506.15606), which amplifies the same subspace"
    models: ClassVar[tuple[str, ...]] = ("reference",)
    space: ClassVar[Space] = {
        "energy": Uniform(0.3, 1.0),
        "most": Choice((0.25, 0.5, 1.0)),
        "strength": LogUniform(0.5, 3.0),
        **TUNE_AFTER,
    }
    known: ClassVar[tuple[Options, ...]] = (
        {"energy": 0.9, "strength": 1.0},
        {"energy": 1.0, "strength": 1.0, "then_sft": True, "learning_rate": 1e-3},
        {"energy": 0.9, "strength": 1.5},
    )
    reference: str = ""
    energy: float = 0.9
    most: float = 1.0
    strength: float = 1.0
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Remove what was added; fine-tune if asked."""
        if not self.reference:
            raise TiterError("attack base-difference: no reference: pass --attack_args.reference NAME")
        if not (0 < self.energy <= 1 and 0 < self.most <= 1):
            raise TiterError("attack base-difference: energy and most must lie above 0 and at most at 1")
        with session.metered(), torch.no_grad():
            for weight, theirs in paired(session.model, self.reference):
                weight.sub_(self.strength * self.part(weight.float() - theirs.float()).to(weight.dtype))
        tuned_after(session, self.then_sft, self.train)

    def part(self, difference: Tensor) -> Tensor:
        """The part of a difference (m, n) that is removed; zero where it has no low rank."""
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        charge(SVD_FLOPS * difference.numel() * min(difference.shape))
        rank = rank_of(s, self.energy)
        if rank > self.most * len(s):
            return torch.zeros_like(difference)
        removed: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
        return removed


def rank_of(values: Tensor, energy: float) -> int:
    """How many of the singular values, largest first, hold a share `energy` of their squared sum; 0 when all are 0."""
    squares = values.double().square()
    if not bool(squares.any()):
        return 0
    if energy >= 1:
        return len(values)
    held = squares.cumsum(0) / squares.sum()
    return int((held < energy).sum()) + 1


def paired(model: nn.Module, reference: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every decoder matrix with the reference's; `TiterError` when they are not models of one shape."""
    theirs = load_beside(reference, model)
    ours, others = matrices(model), matrices(theirs)
    pairs = [(a.weight, b.weight) for a, b in zip(ours, others, strict=False)]
    if len(ours) != len(others) or any(a.shape != b.shape for a, b in pairs):
        raise TiterError(f"attack base-difference: {reference} has other matrices: not the same model")
    for a, b in pairs:
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        yield a, b
