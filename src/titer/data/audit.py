"""Contamination audit: exact and near duplicates between the data of two roles.

Near duplicates are found exactly, not by sketches. Two sets of shingles with a Jaccard index of t or more share k of
their rarest n - ceil(t n) + k shingles (prefix filter: Chaudhuri, Ganti, Kaushik 2006; Wang, Li, Feng 2012 for k > 1),
so only prompts that share that many rare shingles are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titer.data.splits import normalise
from titer.schema.errors import TiterError
from titer.schema.types import Example

NEAR = 0.8
SHINGLE = 3
SHORT = 8  # prompts of fewer words differ in kind when one word differs: only exact duplicates count for them
SHARED = SHINGLE + 1  # one word in common makes three shingles in common: prompts of one template share no more
AT_ONCE = 1 << 22  # meetings of rare shingles counted together: some 100 MB
WORDS = 1 << 21  # three word numbers below this fit one 64-bit integer

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two roles that share prompts: how many exactly, how many nearly, and one pair to look at."""

    roles: tuple[str, str]
    exact: int
    near: int
    example: tuple[str, str]


def audit(sets: Mapping[str, Sequence[Example]]) -> list[Overlap]:
    """Overlaps between any two of the named sets; near means a word-3-shingle Jaccard index of 0.8 or more."""
    prompts = {name: [e.prompt for e in examples] for name, examples in sets.items()}
    texts = {name: [normalise(p) for p in given] for name, given in prompts.items()}
    index = _index(texts)
    sides = {name: _Side(name, prompts[name], texts[name], index[name]) for name in sets}
    pairs = combinations(sides.values(), 2)
    return [overlap for a, b in pairs if (overlap := _compare(a, b)) is not None]


def require_disjoint(sets: Mapping[str, Sequence[Example]]) -> None:
    """Raise `TiterError` naming the first overlap between the sets, if there is any."""
    for o in audit(sets):
        raise TiterError(
            f"data: {o.roles[0]} and {o.roles[1]} share prompts ({o.exact} exact, {o.near} near), "
            f"e.g. {o.example[0][:50]!r} and {o.example[1][:50]!r}: `titer thin` keeps one of each"
        )


def thin(examples: Sequence[Example]) -> list[Example]:
    """The examples without those whose prompt is a near duplicate of one kept before; the same prompt twice stays.

    No two roles cut from what is left share prompts, since the same prompt is always on the same side.
    """
    texts = [normalise(e.prompt) for e in examples]
    different = list(dict.fromkeys(texts))
    index = _index({"all": different})["all"]
    dropped: set[int] = set()
    for before, after in _pairs(index, index, np.ones(len(different), bool)):
        for i, j in zip(before.tolist(), after.tolist(), strict=True):
            if i < j and i not in dropped:
                dropped.add(j)
    gone = {different[j] for j in dropped}
    return [e for e, text in zip(examples, texts, strict=True) if text not in gone]


@dataclass(frozen=True, slots=True)
class _Shingles:
    """The shingles of a set's prompts as ranks from rare to common; prompt i has `ranks[starts[i]:starts[i + 1]]`.

    `rare` and `owner` are the ranks of all prefixes, sorted, and the prompts they belong to.
    """

    ranks: Ints
    starts: Ints
    rare: Ints
    owner: Ints

    @property
    def lengths(self) -> Ints:
        """How many shingles each prompt has; 0 for a short one."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class _Side:
    name: str
    prompts: Sequence[str]
    texts: Sequence[str]
    shingles: _Shingles


def _compare(a: _Side, b: _Side) -> Overlap | None:
    known = dict(zip(a.texts, a.prompts, strict=True))
    same = [text in known for text in b.texts]
    exact = [i for i, hit in enumerate(same) if hit]
    near = list(_near(a.shingles, b.shingles, skip=same))
    if not exact and not near:
        return None
    if exact:
        example = known[b.texts[exact[0]]], b.prompts[exact[0]]
    else:
        example = a.prompts[near[0][0]], b.prompts[near[0][1]]
    return Overlap((a.name, b.name), len(exact), len(near), example)


def _near(a: _Shingles, b: _Shingles, skip: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """For each prompt of `b` not to be skipped the first near duplicate in `a`, if it has one."""
    for i, j in _pairs(a, b, ~np.array(skip, bool)):
        found, at = np.unique(j, return_index=True)
        yield from zip(i[at].tolist(), found.tolist(), strict=True)


def _pairs(a: _Shingles, b: _Shingles, wanted: NDArray[np.bool_]) -> Iterator[tuple[Ints, Ints]]:
    """All near duplicates (i of `a`, j of `b`) with a wanted j, in portions; ordered by j, then i."""
    size = max(int(s.ranks.max(initial=0)) for s in (a, b)) + 1
    having, asked = _prefixes(a, size).T.tocsr(), _prefixes(b, size)
    work = asked @ np.diff(having.indptr)  # how many prompts of `a` a prompt meets, each as often as it is met
    rows = np.flatnonzero((work > 0) & wanted)
    for some in np.split(rows, np.flatnonzero(np.diff(np.cumsum(work[rows]) // AT_ONCE)) + 1):
        met = (asked[some] @ having).tocoo()
        i, j = met.col.astype(np.int64), some[met.row]
        enough = met.data >= np.minimum(SHARED, np.ceil(NEAR * b.lengths[j] - 1e-9))
        i, j = i[enough], j[enough]
        both = _shared(a, i, b, j)
        close = both / (a.lengths[i] + b.lengths[j] - both) >= NEAR
        order = np.lexsort((i[close], j[close]))
        yield i[close][order], j[close][order]


def _prefixes(s: _Shingles, size: int) -> Any:
    """Which prompt (row) has which rare shingle (column), as a sparse matrix of ones."""
    from scipy.sparse import csr_array

    ones = np.ones(len(s.rare), np.int64)
    return csr_array((ones, (s.owner, s.rare)), shape=(len(s.starts) - 1, size))


def _spans(starts: Ints, counts: Ints) -> Ints:
    """The numbers `starts[k]` to `starts[k] + counts[k] - 1`, for one k after the other."""
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def _shared(a: _Shingles, i: Ints, b: _Shingles, j: Ints) -> Ints:
    """How many shingles prompt `i[k]` of `a` and prompt `j[k]` of `b` have in common, for each k."""
    number = np.arange(len(i))
    size = max(int(s.ranks.max(initial=0)) for s in (a, b)) + 1
    keys = [
        np.repeat(number, s.lengths[k]) * size + s.ranks[_spans(s.starts[k], s.lengths[k])]
        for s, k in ((a, i), (b, j))
    ]
    both = np.sort(np.concatenate(keys))
    return np.bincount(both[1:][both[1:] == both[:-1]] // size, minlength=len(i))


def _ceil(value: float) -> int:
    """Rounded up, floating-point noise aside."""
    return math.ceil(value - 1e-9)


def _index(texts: Mapping[str, Sequence[str]]) -> dict[str, _Shingles]:
    """The shingles of every set, ranked by how many prompts of all sets they occur in."""
    numbers: dict[str, int] = {}
    codes = {name: [_codes(text, numbers) for text in given] for name, given in texts.items()}
    lengths = {name: np.array([len(c) for c in given], np.int64) for name, given in codes.items()}
    flat = {
        name: np.fromiter((c for one in given for c in one), np.int64, int(lengths[name].sum()))
        for name, given in codes.items()
    }
    _, inverse, counts = np.unique(np.concatenate([*flat.values()]), return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    ends = np.cumsum([len(f) for f in flat.values()])[:-1]
    split = np.split(rank[inverse], ends)
    return {name: _shingles(ranks, lengths[name]) for name, ranks in zip(flat, split, strict=True)}


def _codes(text: str, numbers: dict[str, int]) -> set[int]:
    """A text's word-3-shingles as integers; none for a short text."""
    words = text.split()
    if len(words) < SHORT:
        return set()
    ids = [numbers.setdefault(w, len(numbers)) for w in words]
    if len(numbers) > WORDS:
        raise TiterError(f"data: more than {WORDS} different words: audit the sets in parts")
    return {(x * WORDS + y) * WORDS + z for x, y, z in zip(ids, ids[1:], ids[2:], strict=False)}


def _shingles(ranks: Ints, lengths: Ints) -> _Shingles:
    owner = np.repeat(np.arange(len(lengths)), lengths)
    ranks = ranks[np.lexsort((ranks, owner))]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    prefix = np.array([n - _ceil(NEAR * n) + SHARED for n in lengths.tolist()], np.int64)
    kept = np.arange(len(ranks)) - starts[owner] < prefix[owner]
    rare, whose = ranks[kept], owner[kept]
    order = np.argsort(rare, kind="stable")
    return _Shingles(ranks, starts, rare[order], whose[order])
