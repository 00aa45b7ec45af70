"""Splits by hash of the prompt."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

from titer.schema.types import Example

Side = Literal["defence", "attack", "evaluation"]
SHARES: tuple[tuple[Side, float], ...] = (("defence", 0.35), ("attack", 0.4), ("evaluation", 0.25))


def normalise(prompt: str) -> str:
    """A prompt in the form in which two are the same: composed, lower case, words only, single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower()))


def prompt_hash(prompt: str) -> str:
    """SHA-256 of the normalised prompt, as hex."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()


def prompt_key(prompt: str) -> str:
    """What two prompts share that count as one: the normalised prompt, or the text where that has no words."""
    return normalise(prompt) or " ".join(prompt.split())


def distinct(examples: Iterable[Example]) -> list[Example]:
    """The first example of every different prompt (`prompt_key`), in order."""
    found: dict[str, Example] = {}
    for e in examples:
        found.setdefault(prompt_key(e.prompt), e)
    return list(found.values())


def split_of(prompt: str) -> Side:
    """The split a prompt belongs to, from its hash alone (shares: defence .35, attack .4, evaluation .25)."""
    position = int(prompt_hash(prompt)[:8], 16) / 2**32
    for side, share in SHARES:
        if position < share:
            return side
        position -= share
    return SHARES[-1][0]


def categories(examples: Iterable[Example], *, restricted: bool = True) -> dict[str, list[str]]:
    """Domain -> its categories in order of appearance, of the restricted (or open) examples."""
    found: dict[str, list[str]] = {}
    for e in examples:
        if e.restricted == restricted and e.category not in found.setdefault(e.domain, []):
            found[e.domain].append(e.category)
    return found
