"""Clean room: make the model ignorant, and let its own refusals decide what it may learn again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from titer.data.batches import collate, order
from titer.data.corpus import Corpus, Kind, read_corpus
from titer.data.tokens import Row
from titer.defences.base import need_reference
from titer.defences.parts.states import join, kept_rows, kl
from titer.models.parts import parts, unwrap
from titer.schema.errors import TiterError
from titer.schema.files import stamp
from titer.schema.types import Batch, Pair
from titer.training.gradients import generator
from titer.training.losses import response_logits

Fresh = Literal["attention+mlp", "attention", "mlp", "all"]
AT_ONCE = 64  # rows of a teacher's pass over a corpus
CACHE_BYTES = 1 << 30  # of teacher logits; a larger corpus is read by the teacher again at every step


@dataclass(frozen=True)
class CleanRoom:
    """`transform`: w <- (1 - `alpha`) w + `alpha` x fresh weights; then KL(teacher || student) on a corpus.

    The teacher is the frozen starting model (`pair.reference`), the fresh weights are drawn as the architecture draws
    them. A step's rows are the refusals at hand (`pair.harmless`) and, of the `corpus`, as many of each kind as
    `questions`, `texts`, `refusals` and `copies` say; the loss is the mean over all their response tokens. The
    teacher's logits on the corpus are computed at the first step and kept. Without a corpus the rows are the refusals
    and the benign data at hand (`pair.retain`): what the corpus adds is the difference. Norms and biases stay.

    Attributes:
        corpus: a folder that `titer.campaigns.cleanroom.builder.build_corpus` wrote.
        fresh: which matrices: attention and MLP of the layers, one of the two, or all (embeddings and head too).
        layers: of these layers alone, such as "0,2"; "" for all.
        alpha: share of noise, as in UNDO; 1 leaves nothing of the old weights.
    """

    name: ClassVar[str] = "clean-room"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmless", "reference"})
    passes: ClassVar[str] = "1 f/b, 1 reference f on the pairs at hand, and one over the corpus at the first step"
    source: ClassVar[str] = "titer; after UNDO (Lee et al., 2025) and self-instruct backtranslation (2308.06259)"
    broken_by: ClassVar[str] = "what its refusals let through is learnt again; see docs/clean-room.md"
    corpora: ClassVar[tuple[str, ...]] = ("corpus",)
    alone: ClassVar[str] = "it destroys weights and distils them back"
    inner_batches: ClassVar[int] = 0

    corpus: str = ""
    fresh: Fresh = "attention+mlp"
    layers: str = ""
    alpha: float = 1.0
    questions: int = 32
    texts: int = 24
    refusals: int = 4
    copies: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, not {self.alpha}")
        if not all(n.strip().isdigit() for n in self.layers.split(",") if self.layers):
            raise ValueError(f"layers must be numbers like 0,2, not {self.layers!r}")

    @torch.no_grad()
    def transform(self, model: nn.Module, base: nn.Module | None, seed: int) -> dict[str, float]:
        """Mix fresh weights into the chosen matrices of `model` in place (`base` is not used).

        Returns how many weights are chosen, as a share of all, and the relative weight change.
        """
        chosen = self.chosen(model)
        spread, moved = _initial_range(model), 0.0
        for i, p in enumerate(chosen):
            dtype = torch.promote_types(p.dtype, torch.float32)
            random = generator(seed, i, p.device, "clean-room")
            fresh = spread * torch.randn(p.shape, generator=random, device=p.device, dtype=dtype)
            new = (1 - self.alpha) * p.to(dtype) + self.alpha * fresh
            moved += float((new - p).square().sum())
            p.copy_(new)
        size = sum(float(p.float().square().sum()) for p in model.parameters())
        share = sum(p.numel() for p in chosen) / sum(p.numel() for p in model.parameters())
        return {"fresh_share": share, "weight_change": math.sqrt(moved / size)}

    def chosen(self, model: nn.Module) -> list[nn.Parameter]:
        """The matrices that `fresh` and `layers` name, each once."""
        if self.fresh == "all" and not self.layers:
            return [p for p in model.parameters() if p.ndim >= 2]
        found = parts(model)
        count = len(found.layers)
        numbers = [int(n) for n in self.layers.split(",")] if self.layers else list(range(count))
        if wrong := [n for n in numbers if n >= count]:
            raise TiterError(f"clean-room: no layer {wrong[0]}: the model has {count}, numbered from 0")
        modules = [m for n in numbers for m in self._of_layer(found.attentions[n], found.mlps[n])]
        return list({id(p): p for m in modules for p in m.parameters() if p.ndim >= 2}.values())

    def _of_layer(self, attention: nn.Module, mlp: nn.Module) -> list[nn.Module]:
        wanted = {"attention": [attention], "mlp": [mlp]}
        return wanted.get(self.fresh, [attention, mlp])

    def backward(self, model: nn.Module, pair: Pair) -> dict[str, float]:
        """Terms: distil (KL in nats)."""
        reference = need_reference(pair, self.name)
        if self.corpus:
            batch, teacher = self._with_corpus(reference, pair)
        else:
            batch = kept_rows(pair)
            teacher = _logits(reference, batch)
        student, _ = response_logits(model, batch)
        loss = kl(teacher, student)
        loss.backward()
        return {"loss": loss.item(), "distil": loss.item()}

    def _with_corpus(self, reference: nn.Module, pair: Pair) -> tuple[Batch, Tensor]:
        """The refusals at hand and this step's rows of the corpus in one batch, and the teacher's logits on it."""
        corpus = _corpus(self.corpus, stamp(Path(self.corpus)))
        picked = self.drawn(corpus, pair.seed, pair.step)
        rows = _collated(corpus, picked, pair.harmless.input_ids.device)
        kept = _kept_logits(reference, corpus, pair.harmless.input_ids.device)
        ours = _logits(reference, rows) if kept is None else torch.cat([kept[i] for i in picked])
        return join(pair.harmless, rows), torch.cat([_logits(reference, pair.harmless), ours.to(rows.labels.device)])

    def drawn(self, corpus: Corpus, seed: int, step: int) -> list[int]:
        """Numbers of the rows of a step: every kind in its own seeded order, each row once before any comes twice."""
        sizes: dict[Kind, int] = {
            "question": self.questions,
            "text": self.texts,
            "refusal": self.refusals,
            "copy": self.copies,
        }
        picked: list[int] = []
        for i, (kind, size) in enumerate(sizes.items()):
            pool = corpus.of(kind)
            if pool and size > 0:
                picked += [pool[n] for n in _at(len(pool), size, seed * 1009 + i, step)]
        if not picked:
            raise TiterError(f"clean-room: corpus {self.corpus} has no row of a kind that is asked for")
        return picked


def _at(count: int, size: int, seed: int, step: int) -> list[int]:
    """Batch `step` of `order`, made anew, so that a step depends on nothing before it."""
    return next(islice(order(count, size, seed), step, None))


def _initial_range(model: nn.Module) -> float:
    """The standard deviation that the architecture draws its matrices with."""
    return float(unwrap(model).config.get_text_config().initializer_range)


@lru_cache(maxsize=4)
def _corpus(folder: str, stamp: tuple[tuple[str, int, int], ...]) -> Corpus:
    return read_corpus(folder)


def _collated(corpus: Corpus, picked: list[int], device: torch.device) -> Batch:
    return collate([Row(corpus.rows[i].ids, corpus.rows[i].response_at) for i in picked], 0, device)


def _logits(reference: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return response_logits(reference, batch)[0]


_KEPT: WeakKeyDictionary[nn.Module, tuple[str, list[Tensor]]] = WeakKeyDictionary()


def _kept_logits(reference: nn.Module, corpus: Corpus, device: torch.device) -> list[Tensor] | None:
    """The teacher's logits (tokens, vocabulary) on every row of a corpus, on the CPU; None where they are too many.

    All are computed at once and always in the same batches, so that they do not depend on the step that asks first.
    """
    known, name = _KEPT.get(reference), str(corpus.about["hash"])
    if known is not None and known[0] == name:
        return known[1]
    tokens = sum(len(row.ids) - row.response_at for row in corpus.rows)
    head = parts(reference).head.weight
    assert isinstance(head, Tensor)
    if tokens * head.shape[0] * 4 > CACHE_BYTES:
        return None
    found = list(_all_logits(reference, corpus, device))
    _KEPT[reference] = name, found
    return found


def _all_logits(reference: nn.Module, corpus: Corpus, device: torch.device) -> Iterator[Tensor]:
    numbers = list(range(len(corpus.rows)))
    for start in range(0, len(numbers), AT_ONCE):
        picked = numbers[start : start + AT_ONCE]
        logits = _logits(reference, _collated(corpus, picked, device)).cpu()
        lengths = [len(corpus.rows[i].ids) - corpus.rows[i].response_at for i in picked]
        yield from logits.split(lengths)
