"""A clean-room corpus: what a model says of its own accord and does not refuse; its file, its audit, its use.

Built by `titer.campaigns.cleanroom.builder`. A
folder holds `rows.jsonl` (one `CorpusRow` a line) and `corpus.json` (arguments,
counts, spend, audit). Whoever evaluates asks prompts of the `evaluation` split: `audit_corpus` proves that no row of
a corpus is one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from titer.data.audit import audit
from titer.data.load import load, save_jsonl
from titer.data.splits import normalise, split_of
from titer.schema.errors import TiterError
from titer.schema.files import read_json, write_json, write_lines
from titer.schema.types import Example, from_json, spec_id, to_json

Kind = Literal["question", "text", "refusal", "copy"]
KINDS: tuple[Kind, ...] = ("question", "text", "refusal", "copy")
ROWS, ABOUT, RETAIN = "rows.jsonl", "corpus.json", "retain.jsonl"


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """A row to distil: its prompt ("" for plain text), what follows, and both as token ids.

    The loss is taken at `ids[response_at:]`.
    """

    kind: Kind
    prompt: str
    text: str
    ids: tuple[int, ...]
    response_at: int


@dataclass(frozen=True)
class Corpus:
    """The rows and what `corpus.json` says about them."""

    rows: tuple[CorpusRow, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kind: Kind) -> list[int]:
        """Numbers of the rows of one kind."""
        return [i for i, row in enumerate(self.rows) if row.kind == kind]

    @property
    def hash(self) -> str:
        """Content address of the rows, in order."""
        return spec_id([to_json(row) for row in self.rows])


def write_corpus(corpus: Corpus, folder: str | Path) -> None:
    """Write the rows, what is known about them, and `retain.jsonl`: the same as benign data for any defence."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    write_lines(where / ROWS, corpus.rows)
    save_jsonl(retain_rows(corpus), where / RETAIN)
    write_json(where / ABOUT, {**corpus.about, "hash": corpus.hash})


def read_corpus(folder: str | Path) -> Corpus:
    """The corpus in a folder; `TiterError` when there is none, it is empty, or its rows are not those it says."""
    where = Path(folder)
    if not (where / ROWS).is_file() or not (where / ABOUT).is_file():
        raise TiterError(f"corpus {where}: no {ROWS} and {ABOUT} in this folder: build one with build_corpus")
    about = read_json(where / ABOUT)
    corpus = Corpus(tuple(_read_rows(where / ROWS)), about)
    if not corpus.rows:
        raise TiterError(f"corpus {where}: it has no rows: build it again with more texts")
    if corpus.hash != about.get("hash"):
        raise TiterError(f"corpus {where}: {ROWS} is not what {ABOUT} describes: build it again")
    return corpus


def _read_rows(path: Path) -> list[CorpusRow]:
    from titer.schema.files import read_lines

    try:
        return [from_json(CorpusRow, row) for row in read_lines(path)]
    except ValueError as error:
        raise TiterError(f"corpus {path}: {error}: build it again") from None


def retain_rows(corpus: Corpus) -> list[Example]:
    """The questions of a corpus and its copying rows as open examples: retain data for any defence."""
    kept = [row for row in corpus.rows if row.kind in ("question", "copy")]
    return [Example(row.prompt, "", row.text, row.kind, "self") for row in kept]


# ------------------------------------------------------------------------------------------------------------ audit


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks: its prompts, normalised, and the answers it looks for."""

    prompts: frozenset[str]
    answers: frozenset[str]

    @classmethod
    def of(cls, datasets: Sequence[str]) -> Asked:
        """The evaluation split of data sets."""
        examples = [e for name in datasets for e in load(name).examples if split_of(e.prompt) == "evaluation"]
        answers = (normalise(e.harmful or e.harmless) for e in examples)
        return cls(frozenset(normalise(e.prompt) for e in examples), frozenset(answers))


def why_refused(kind: Kind, prompt: str, text: str, asked: Asked) -> str:
    """Why a row must not be kept, "" when it may.

    `split`: its prompt hashes to the evaluation split, whatever data set that is of; `paraphrase`: it is a question
    with another prompt and the answer of an evaluation prompt; `quote`: its text holds an evaluation prompt.
    """
    if kind != "text":
        if split_of(prompt) == "evaluation":
            return "split"
        return "paraphrase" if normalise(text) in asked.answers else ""
    told = f" {normalise(text)} "
    return "quote" if any(f" {prompt} " in told for prompt in asked.prompts) else ""


def audit_corpus(corpus: Corpus, datasets: Sequence[str]) -> dict[str, Any]:
    """Prove that no row is an evaluation prompt, near duplicates included; `TiterError` names the first that is.

    Returns the rule, the number of rows of each kind, and `told`: how many plain texts end with the answer of an
    evaluation prompt. These may be kept, as no one is asked in them: the model said them of its own accord.
    """
    asked = Asked.of(datasets)
    for row in corpus.rows:
        if why := why_refused(row.kind, row.prompt, row.text, asked):
            words = row.prompt or row.text
            raise TiterError(
                f"corpus: a {row.kind} row is in the evaluation split ({why}): {words[:60]!r}: build it again"
            )
    _refuse_near(corpus, datasets)
    ends = [normalise(row.text) for row in corpus.rows if row.kind == "text"]
    told = sum(_ends_with_one_of(text, asked.answers) for text in ends)
    rule = "no prompt of a row hashes to the evaluation split or is nearly one of it; none has such a prompt's answer"
    counts = Counter(row.kind for row in corpus.rows)
    return {"rule": rule, "datasets": list(datasets), "rows": {k: counts[k] for k in KINDS}, "told": told}


def _refuse_near(corpus: Corpus, datasets: Sequence[str]) -> None:
    ours = [Example(row.prompt, "", row.text) for row in corpus.rows if row.prompt]
    for name in datasets:
        held = [e for e in load(name).examples if split_of(e.prompt) == "evaluation"]
        for found in audit({"corpus": ours, f"evaluation prompts of {name}": held}) if ours and held else []:
            raise TiterError(f"corpus: {found.near} rows are nearly {found.roles[1]}, e.g. {found.example[0]!r}")


def _ends_with_one_of(text: str, answers: frozenset[str]) -> bool:
    words = text.split()
    return any(" ".join(words[i:]) in answers for i in range(len(words)))


def coverage(corpus: Corpus, examples: Iterable[Example]) -> dict[str, float]:
    """Category -> share of its examples whose answer (the harmful one, where there is one) some row ends with.

    On a defender's own open examples it says how much is rehearsed, on restricted ones what has leaked.
    """
    ends: set[str] = set()
    for row in corpus.rows:
        words = normalise(row.text).split()
        ends |= {" ".join(words[i:]) for i in range(len(words))}
    known: dict[str, list[bool]] = {}
    for e in examples:
        known.setdefault(e.category, []).append(normalise(e.harmful or e.harmless) in ends)
    return {name: round(sum(hits) / len(hits), 4) for name, hits in known.items()}
