"""The texts that models are compared on: held-out restricted prompts with both answers, and open prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from titer.data.roles import check
from titer.data.select import select
from titer.data.tokens import Row, encode_all
from titer.runs.probe import distinct
from titer.runs.provenance import roles_of
from titer.schema.errors import TiterError
from titer.schema.mechanism import Mechanism
from titer.schema.types import Example

LONGEST = 256  # tokens of a text, where the model takes as many


@dataclass(frozen=True)
class Texts:
    """Prompts, each once, and their rows of tokens.

    Attributes:
        restricted: the prompts with a harmful answer.
        open: the prompts of harmless tasks; without them nothing is told apart.
        harmful: a row for each restricted prompt with its harmful answer.
        refusals: the same prompts with their harmless answer, where there is one.
        benign: a row for each open prompt with its right answer.
    """

    restricted: tuple[Example, ...]
    open: tuple[Example, ...]
    harmful: tuple[Row, ...]
    refusals: tuple[Row, ...]
    benign: tuple[Row, ...]

    def kinds(self) -> dict[str, tuple[Row, ...]]:
        """The kinds of text that there are, by name."""
        found = {"harmful": self.harmful, "refusal": self.refusals, "benign": self.benign}
        return {name: rows for name, rows in found.items() if rows}

    def openings(self, tokens: int) -> list[Row]:
        """The refusals cut after the first tokens of their answer."""
        return [Row(r.ids[: r.response_at + tokens], r.response_at) for r in self.refusals]


def texts_for(model: str, asked: Mechanism, tokenizer: Any, room: int | None) -> Texts:
    """At most `n` texts of each kind that neither the defence nor an attack has trained on.

    The roles of the data are those that the model was immunized with, when it says so. `room` is how many tokens the
    models take.
    """
    longest = min(LONGEST, room or LONGEST)
    roles = roles_of(model, asked.data)
    check(roles)
    restricted = distinct(select(roles.harm("seen", None)))[: asked.n]
    opened = distinct(select(roles.utility(None)))[: asked.n] if roles.has_open else []
    refused = [e for e in restricted if e.harmless]
    if not opened:
        raise TiterError(f"data set {roles.dataset}: no open prompts: name some with --open_dataset")
    return Texts(
        tuple(restricted),
        tuple(opened),
        tuple(encode_all(tokenizer, restricted, "harmful", max_length=longest)),
        tuple(encode_all(tokenizer, refused, "harmless", max_length=longest)),
        tuple(encode_all(tokenizer, opened, "harmless", max_length=longest)),
    )
