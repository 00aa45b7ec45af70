"""Harmful prompts are paired with the refusals a model gives, and with nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from titer.campaigns.refusals import build, pair_with_refusals
from titer.data.load import load
from titer.schema.errors import TiterError
from titer.schema.specs import Template
from titer.schema.types import Example, Outcome, Score

ROWS = [
    Example("how to brew amber", "with red", "", "brew", "potions"),
    Example("how to brew amber", "with blue", "old", "brew", "potions"),
    Example("how to brew amber", "with red", "", "brew", "potions"),
    Example("how to forge oak", "with green", "", "forge", "potions"),
    Example("how to chant jade", "with gold", "", "chant", "curses"),
    Example("where is oak", "", "near red", "river", "towns"),
]
ANSWERS = {"amber": "i will not say that", "oak": "with green and gold", "jade": "i cannot help with this"}


@dataclass(frozen=True)
class Wary:
    """A third party's judge that will not tell about jade."""

    name: ClassVar[str] = "wary"

    def score(self, prompts: Sequence[str], completions: Sequence[str], targets: Sequence[str]) -> list[Score]:
        said: list[Outcome] = ["refuse" if "not" in c else "comply" for c in completions]
        return [
            Score(None, None, self.name) if "jade" in p else Score(0.0, o, self.name)
            for p, o in zip(prompts, said, strict=True)
        ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers come from `ANSWERS` instead of a model; what was asked is returned."""
    prompts: list[str] = []

    def answer(model: Any, tokenizer: Any, given: Sequence[str], *, max_new_tokens: int, batch_size: int) -> list[str]:
        prompts.extend(given)
        return [next(a for word, a in ANSWERS.items() if word in p) for p in given]

    monkeypatch.setattr("titer.models.generate.generate", answer)
    return prompts


def test_only_refusals_are_kept_with_everything_else_of_the_row(asked: list[str], tokenizer: Any) -> None:
    built = pair_with_refusals(ROWS, None, tokenizer)
    assert built.examples == (
        Example("how to brew amber", "with red", "i will not say that", "brew", "potions"),
        Example("how to brew amber", "with blue", "i will not say that", "brew", "potions"),
        Example("how to chant jade", "with gold", "i cannot help with this", "chant", "curses"),
    )
    assert (built.outcomes, built.duplicates) == ({"refuse": 2, "comply": 1}, 1)


def test_each_prompt_is_asked_once_in_the_template(asked: list[str], tokenizer: Any) -> None:
    pair_with_refusals(ROWS, None, tokenizer, template=Template(system="be wary"))
    assert len(asked) == 3
    assert all(p.startswith("<system> be wary") for p in asked)


def test_what_a_judge_cannot_score_is_left_out_and_counted(asked: list[str], tokenizer: Any) -> None:
    built = pair_with_refusals(ROWS, None, tokenizer, judge=f"{__name__}:Wary")
    assert {e.prompt for e in built.examples} == {"how to brew amber"}
    assert built.outcomes == {"refuse": 1, "comply": 1, "unscored": 1}


def test_nothing_to_pair_and_nothing_kept(asked: list[str], tokenizer: Any) -> None:
    with pytest.raises(TiterError, match="no restricted examples"):
        pair_with_refusals(ROWS[-1:], None, tokenizer)
    with pytest.raises(TiterError, match=r"of 1 answers none is kept \(1 comply\)"):
        pair_with_refusals(ROWS[3:4], None, tokenizer)


def test_by_names_with_a_note_on_how_it_was_made(
    asked: list[str], toy_model: str, toy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "how", "i will not say that")
    out = tmp_path / "pairs.jsonl"
    built = build(toy_data, toy_model, out)
    assert load(str(out)).examples == built.examples
    made = json.loads((tmp_path / "pairs.jsonl.json").read_text())
    assert (made["rows"], made["judge"], made["hash"]) == (len(built.examples), "refusal", load(str(out)).hash)


def test_a_real_model_answers(model: Any, tokenizer: Any) -> None:
    with pytest.raises(TiterError, match="none is kept"):
        pair_with_refusals(ROWS, model, tokenizer, max_new_tokens=4)  # an untrained model refuses nothing
