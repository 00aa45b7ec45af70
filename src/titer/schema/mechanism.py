"""What may be asked of the mechanism: why a defence holds, or does not."""

from __future__ import annotations

from dataclasses import dataclass, field

from titer.schema.errors import require
from titer.schema.evaluation import Data, Grading
from titer.schema.specs import Compute

SEEDS = tuple(range(10))


@dataclass(frozen=True)
class Mechanism:
    """The models that one is held against, and the texts on which.

    Attributes:
        reference: the model as it was before the defence.
        attacked: the model after attacks, as model folders.
        ignorant: trained alike without the restricted knowledge; it normalises the depth score.
        full: the model that knows the answers, whose states are patched for the depth score; default the reference.
        n: texts of each kind: restricted prompts, and open ones.
        seeds: one division into a probe's folds each.
        batch_size: texts at once; their states are held for that long.
        opening: tokens of a refusal that count as its opening.
        forced: words of the answer, or of the refusal, that a completion is made to begin with.
    """

    reference: str
    attacked: tuple[str, ...] = ()
    ignorant: str = ""
    full: str = ""
    n: int = 100
    seeds: tuple[int, ...] = SEEDS
    batch_size: int = 16
    opening: int = 3
    forced: tuple[int, ...] = (0, 1, 2, 4)
    data: Data = field(default_factory=Data)
    grading: Grading = field(default_factory=Grading)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        require("n", self.n, least=5)
        require("batch_size", self.batch_size, least=1)
        require("opening", self.opening, least=1)
        if not self.reference.strip():
            raise ValueError("reference: empty: name the model before the defence")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: none, or one twice: give different ones")
        if min(self.seeds) < 0:
            raise ValueError("seeds: must be 0 or more")
        if not self.forced or min(self.forced) < 0:
            raise ValueError("forced: none, or fewer than 0 words: give numbers of words")
        if self.compute.accelerate_config or self.compute.load_in_4bit:
            raise ValueError("mechanism: reads whole weights: leave out accelerate_config and load_in_4bit")
