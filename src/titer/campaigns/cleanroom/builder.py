"""Build a clean-room corpus: sample what the base model says, keep what the aligned model says too when asked.

1. Sample free text from the base model at temperature 1.
2. Instruction backtranslation (Li et al., arXiv 2308.06259): a copy of the base model learns text -> prompt from the
   pairs at hand, and writes a prompt for every text; the aligned model answers it. A text is *allowed* when that
   answer is the text's own end and no refusal. Rounds seed each other.
3. A bag-of-words classifier of allowed against other texts drops allowed texts it finds unlike the others, and adds
   as plain text what is like them and could not be asked.

The defender uses the pairs a defence is given and two models, nothing else: what the aligned model refuses in other
categories and domains stays out although nobody named it. The evaluation's prompts are used for one thing, to leave
them out. Which refusals the aligned model gives decides what may be learnt again: it is as good as they are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.campaigns.cleanroom.asking import (
    DEFAULTS,
    CorpusArgs,
    Found,
    Hand,
    Report,
    Speaker,
    ask,
    free_texts,
    speaker,
)
from titer.campaigns.cleanroom.filter import probabilities
from titer.data.corpus import Asked, Corpus, CorpusRow, Kind, audit_corpus, coverage, why_refused, write_corpus
from titer.data.roles import assign
from titer.data.select import select
from titer.data.splits import normalise
from titer.data.tokens import Row, encode
from titer.models.load import resolve
from titer.models.weights import fingerprint
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data
from titer.schema.roles import Roles
from titer.schema.types import Spend, to_json


def build_corpus(
    base: str,
    aligned: str,
    dataset: str | Roles,
    output_dir: str | Path,
    *,
    args: CorpusArgs = DEFAULTS,
    dtype: str = "float32",
    device: str = "cpu",
    report: Report = lambda line: None,
) -> Corpus:
    """Build, audit and write the corpus of `aligned` (made from `base`) under `output_dir`; the corpus.

    The pairs at hand are those that `titer immunize` gives a defence: `dataset` is the name of a data set, or the
    roles made of it with a domain or withheld categories. Raises `TiterError` when the two models have different
    vocabularies, or an evaluation prompt got in all the same.
    """
    roles = assign(Data(dataset)) if isinstance(dataset, str) else dataset
    datasets = tuple(dict.fromkeys((roles.dataset, roles.open_dataset, *args.also_asked)))
    bill: dict[str, Spend] = {}
    teller, answerer = (speaker(name, dtype, device, args, bill) for name in (base, aligned))
    if teller.tokenizer.get_vocab() != answerer.tokenizer.get_vocab():
        raise TiterError(f"corpus: {base} and {aligned} have different vocabularies: pass the base of the aligned one")
    hand = Hand(teller, answerer, select(roles.defence()), select(roles.retain()))
    texts = free_texts(teller, args)
    report(f"sampled {args.texts} texts, {len(texts)} different ones")
    found = ask(texts, hand, args, report)
    removed: Counter[str] = Counter()
    chances = _chances(texts, found)
    rows = [*_rows(texts, found, chances, hand, args), *_copies(texts, answerer, args)]
    kept = tuple(_kept(_unique(rows), Asked.of(datasets), answerer.tokenizer, removed))
    about = {
        "base": fingerprint(resolve(base)),
        "aligned": fingerprint(resolve(aligned)),
        "roles": to_json(roles),
        "args": to_json(args),
        "counts": _counts(texts, found, chances, args) | {"left_out": dict(sorted(removed.items()))},
        "coverage": _coverage(kept, hand),
        "spend": to_json(bill),
        "audit": audit_corpus(Corpus(kept), datasets),
    }
    made = Corpus(kept, about)
    write_corpus(made, output_dir)
    return made


# --------------------------------------------------------------------------------------------------------------- rows


def _chances(texts: Sequence[str], found: Found) -> dict[str, float]:
    """The classifier's probability, for every text, that it is one of the allowed."""
    return dict(zip(texts, probabilities(texts, [t in found.allowed for t in texts]), strict=True))


def _fits(text: str, found: Found, chances: Mapping[str, float], args: CorpusArgs) -> bool:
    """Whether a text may be rehearsed as plain text."""
    if text in found.forbidden or text in found.refused:
        return False
    return chances[text] >= (args.keep if text in found.allowed else args.admit)


def _rows(
    texts: Sequence[str], found: Found, chances: Mapping[str, float], hand: Hand, args: CorpusArgs
) -> Iterator[tuple[Kind, str, str]]:
    """Rows of all kinds but copying, as kind, prompt and text; the benign pairs at hand come first."""
    for e in hand.kept:
        yield "question", e.prompt, e.harmless
    for text in texts:
        if _fits(text, found, chances, args):
            yield "text", "", text
            if text in found.allowed:
                yield "question", *found.allowed[text]
        elif text in found.refused:
            yield "refusal", *found.refused[text]


def _copies(texts: Sequence[str], answerer: Speaker, args: CorpusArgs) -> Iterator[tuple[Kind, str, str]]:
    """Rows in which the aligned model repeats some words, in its own way, and says no other."""
    words = sorted({word.strip(".,:;?!") for text in texts for word in text.split()} - {""})
    rng = random.Random(f"copies/{args.seed}")
    wanted = [" ".join(rng.choices(words, k=rng.randint(2, 5))) for _ in range(args.copies)]
    prompts = [args.copy_prompt.format(text=text) for text in wanted]
    answers = answerer.answers(prompts, args.max_new_tokens, "answers") if prompts else []
    for prompt, text, answer in zip(prompts, wanted, answers, strict=True):
        said = set(normalise(answer).split())
        if said and said <= set(normalise(text).split()):
            yield "copy", prompt, answer


def _unique(rows: Sequence[tuple[Kind, str, str]]) -> list[tuple[Kind, str, str]]:
    """The first row of every prompt, and of every plain text."""
    first: dict[tuple[str, str], tuple[Kind, str, str]] = {}
    for kind, prompt, text in rows:
        first.setdefault((normalise(prompt), "" if prompt else text), (kind, prompt, text))
    return list(first.values())


def _kept(
    rows: Sequence[tuple[Kind, str, str]], asked: Asked, tokenizer: Any, removed: Counter[str]
) -> Iterator[CorpusRow]:
    """Rows as tokens, without those an evaluation asks; why the others went is counted."""
    for kind, prompt, text in rows:
        why = why_refused(kind, prompt, text, asked)
        if why:
            removed[f"{kind}: {why}"] += 1
            continue
        row = _encoded(tokenizer, prompt, text)
        yield CorpusRow(kind, prompt, text, row.ids, row.response_at)


def _encoded(tokenizer: Any, prompt: str, text: str) -> Row:
    """A prompt and its answer in the chat template; plain text from its first token on, as it was sampled."""
    if prompt:
        return encode(tokenizer, prompt, text)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Row((begin, *ids, tokenizer.eos_token_id), 1)


def _coverage(rows: Sequence[CorpusRow], hand: Hand) -> dict[str, dict[str, float]]:
    """How much of the open examples at hand sampling alone has found, and of the restricted ones (it should be 0)."""
    given = {normalise(e.prompt) for e in hand.kept}
    sampled = Corpus(tuple(row for row in rows if normalise(row.prompt) not in given))
    return {"open": coverage(sampled, hand.kept), "restricted": coverage(sampled, hand.defended)}


def _counts(texts: Sequence[str], found: Found, chances: Mapping[str, float], args: CorpusArgs) -> dict[str, Any]:
    fits = {t for t in texts if _fits(t, found, chances, args)}
    return {
        "sampled": args.texts,
        "different": len(texts),
        "allowed": len(found.allowed),
        "dropped_by_classifier": sum(t not in fits for t in found.allowed),
        "admitted": sum(t not in found.allowed for t in fits),
        "forbidden": len(found.forbidden),
        "refused": len(found.refused),
        "rounds": found.rounds,
    }
