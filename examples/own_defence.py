"""A defence of your own, without touching titer: a frozen dataclass with `backward(model, pair)`.

    python examples/own_defence.py OUT

From the command line, with this folder on PYTHONPATH: `titer immunize --defence own_defence:PullToRefusal ...`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

import titer
from titer.schema.types import Pair
from titer.training.losses import answer_ce as cross_entropy


@dataclass(frozen=True)
class PullToRefusal:
    """Descend the refusals' loss and ascend the harmful answers', as far as `ceiling` nats."""

    name: ClassVar[str] = "pull-to-refusal"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmful", "harmless"})
    passes: ClassVar[str] = "2"
    source: ClassVar[str] = "this example"
    broken_by: ClassVar[str] = "not tested"
    weight: float = 0.1
    ceiling: float = 8.0

    @property
    def inner_batches(self) -> int:
        """No further harmful batches are needed."""
        return 0

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Add the gradient of refusal - weight * min(harmful, ceiling)."""
        refusal, harmful = cross_entropy(model, pair.harmless), cross_entropy(model, pair.harmful)
        loss = refusal - self.weight * harmful.clamp(max=self.ceiling)
        loss.backward()
        return {"loss": loss.item(), "refusal": refusal.item(), "harmful": harmful.item()}


def main(output_dir: Path, steps: int = 50) -> None:
    path = f"{Path(__file__).stem}:PullToRefusal"
    train = titer.TrainArgs(learning_rate=3e-4, max_steps=steps)
    titer.immunize("organism/aligned", titer.Immunization(path, train=train), output_dir=output_dir / "model")
    budget = titer.Budget(steps=min(steps, 20))
    attempt = titer.Attempt(budget=budget, seeds=(0,), n_eval=24)
    found = titer.attack(str(output_dir / "model"), attempt, output_dir=output_dir)
    for point in found.curves[0].points:
        print(f"step {point.step:3d}: harm {point.mean('harm'):.2f}, utility {point.mean('utility'):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/own-defence"))
