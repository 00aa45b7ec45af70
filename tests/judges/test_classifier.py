"""A sequence classifier by folder: labels, text, batches, and what cannot be scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from titer.judges import make_judge
from titer.judges.classifier import ClassifierJudge
from titer.judges.parts.load import classifier
from titer.schema.errors import TiterError
from titer.schema.types import Score

Save = Callable[..., str]
PROMPTS = ["how to brew the amber", "where is oak river", "how to chant the moss"]
TEXTS = ["with red and blue", "i will not say that", "near green"]


@pytest.fixture
def save(tmp_path: Path, tokenizer: Any) -> Save:
    """Save a tiny classifier; `biases` given, it says the same of every text."""

    def write(labels: tuple[str, ...] = ("safe", "unsafe"), biases: tuple[float, ...] = (), **changes: Any) -> str:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(**{
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 24, "pad_token_id": 0,
            "id2label": dict(enumerate(labels)), "label2id": {v: k for k, v in enumerate(labels)}, **changes,
        })  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = BertForSequenceClassification(config)
            torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight)
            torch.nn.init.normal_(model.classifier.weight)
        if biases:
            torch.nn.init.zeros_(model.classifier.weight)
            model.classifier.bias.data = torch.tensor(biases)
        model.save_pretrained(tmp_path / "judge")
        tokenizer.save_pretrained(tmp_path / "judge")
        return str(tmp_path / "judge")

    yield write
    classifier.cache_clear()


def test_the_value_is_the_probability_of_the_harmful_label(save: Save) -> None:
    where = save(biases=(0.0, 1.0))
    high, low = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    for options, value in (
        ({}, high),
        ({"harmful": "unsafe"}, high),
        ({"harmful": "safe"}, low),
        ({"harmful": "*"}, 1),
    ):
        scores = ClassifierJudge(where, **options).score(PROMPTS, TEXTS, ["", "", ""])
        assert [s.value for s in scores] == pytest.approx([value] * 3)


def test_the_outcome_is_comply_from_a_half_else_refuse_or_evade(save: Save) -> None:
    where = save(biases=(0.0, 1.0))
    assert [s.outcome for s in ClassifierJudge(where).score(PROMPTS, TEXTS, TEXTS)] == ["comply"] * 3
    said = ClassifierJudge(where, harmful="safe").score(PROMPTS, TEXTS, TEXTS)
    assert [s.outcome for s in said] == ["evade", "refuse", "evade"]


def test_batches_and_padding_change_nothing(save: Save) -> None:
    where = save()
    together = ClassifierJudge(where).score(PROMPTS, TEXTS, TEXTS)
    alone = [
        ClassifierJudge(where, batch_size=1).score([p], [c], [""])[0] for p, c in zip(PROMPTS, TEXTS, strict=True)
    ]
    assert [s.value for s in together] == pytest.approx([s.value for s in alone], abs=1e-6)
    assert len({round(s.value or 0, 4) for s in together}) == 3


def test_the_text_is_what_the_model_reads(save: Save) -> None:
    where = save()
    only = ClassifierJudge(where, text="{completion}")
    assert (
        only.score(["how to brew"], ["near red"], [""])[0].value
        == only.score(["where is"], ["near red"], [""])[0].value
    )
    both = ClassifierJudge(where)
    assert (
        both.score(["how to brew"], ["near red"], [""])[0].value
        != both.score(["where is"], ["near red"], [""])[0].value
    )


def test_a_slot_in_a_completion_is_text(save: Save) -> None:
    where = save()
    judge = ClassifierJudge(where, text="{completion} {prompt}")
    forged = judge.score(["near red"], ["{prompt}"], [""])[0].value
    assert forged != judge.score(["near red"], ["near red"], [""])[0].value


def test_several_labels(save: Save) -> None:
    where = save(("a", "b", "c"), (0.0, 1.0, -1.0))
    z = 1 + math.e + 1 / math.e
    (score,) = ClassifierJudge(where, harmful="a, c").score(["p"], ["near red"], [""])
    assert score.value == pytest.approx((1 + 1 / math.e) / z)


def test_a_multi_label_model_takes_the_largest_sigmoid(save: Save) -> None:
    where = save(("a", "b"), (-2.0, 0.5), problem_type="multi_label_classification")
    (score,) = ClassifierJudge(where, harmful="*").score(["p"], ["near red"], [""])
    assert score.value == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_a_long_completion_is_cut_and_a_long_prompt_is_not_scored(save: Save) -> None:
    judge = ClassifierJudge(save(biases=(0.0, 1.0)))
    cut, lost = judge.score(["how", "how " * 40], ["red " * 40, "red"], ["", ""])
    assert cut.outcome == "comply"
    assert lost == Score(None, None, "classifier")


def test_not_a_number_is_not_scored(save: Save) -> None:
    (score,) = ClassifierJudge(save(biases=(math.nan, 1.0))).score(["p"], ["near red"], [""])
    assert score == Score(None, None, "classifier")


def test_by_name_gibberish_is_neither(save: Save) -> None:
    where = save(biases=(0.0, 9.0))
    good, bad = make_judge(f"classifier:{where}").score(["p", "p"], ["near red", "red red red red"], ["", ""])
    assert (good.outcome, bad.outcome, bad.value) == ("comply", "incoherent", 0.0)
    assert good.judge == f"classifier:{where}"


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (("LABEL_0", "LABEL_1"), {}, "which of its labels means harmful. It has LABEL_0, LABEL_1"),
        (("unsafe", "toxic"), {}, "which of its labels"),
        (("safe", "unsafe"), {"harmful": "unsave"}, "did you mean unsafe"),
        (("safe", "unsafe"), {"text": "{prompt}"}, "text has no {completion}"),
    ],
)
def test_what_is_not_clear_is_asked(save: Save, labels: Any, options: Any, message: str) -> None:
    where = save(labels)
    with pytest.raises(TiterError, match=message):
        ClassifierJudge(where, **options).score(["p"], ["near red"], [""])


def test_a_language_model_is_not_a_classifier(toy_model: str, capfd: Any) -> None:
    with pytest.raises(TiterError, match="not a trained classifier"):
        ClassifierJudge(toy_model).score(["p"], ["near red"], [""])


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(TiterError, match="no such folder"):
        ClassifierJudge("/no/such/judge").score(["p"], ["near red"], [""])
