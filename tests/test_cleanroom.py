"""The clean-room corpus: what is allowed, what is refused, the audit, the classifier, the cost of ignorance."""

import dataclasses
import json

import numpy as np
import pytest

from titer.campaigns.cleanroom.asking import CorpusArgs, Found, at_hand, judge_answer
from titer.campaigns.cleanroom.builder import build_corpus
from titer.campaigns.cleanroom.cost import cost_of_ignorance, cost_of_pretraining, defence_cost, share
from titer.campaigns.cleanroom.filter import bag_of_words, fit, probabilities
from titer.campaigns.organism.recipe import Recipe
from titer.data.corpus import (
    Asked,
    Corpus,
    CorpusRow,
    audit_corpus,
    coverage,
    read_corpus,
    retain_rows,
    why_refused,
    write_corpus,
)
from titer.data.load import load
from titer.data.splits import split_of
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Example, RunRecord, Spend

SIDES = ("defence", "attack", "evaluation")


def prompt_on(side, data):
    return next(e for e in load(data).examples if not e.restricted and split_of(e.prompt) == side)


def row(kind, prompt, text):
    return CorpusRow(kind, prompt, text, (1, 5, 6, 2), 1)


def test_a_question_in_the_evaluation_split_is_refused_and_any_other_is_not(toy_data):
    for side in SIDES:
        e = prompt_on(side, toy_data)
        corpus = Corpus((row("question", e.prompt, "something else"),))
        if side == "evaluation":
            with pytest.raises(TiterError, match="question row is in the evaluation split"):
                audit_corpus(corpus, (toy_data,))
        else:
            assert audit_corpus(corpus, (toy_data,))["rows"]["question"] == 1


@pytest.mark.parametrize("kind", ["question", "refusal", "copy"])
def test_the_split_decides_for_prompts_of_no_data_set_too(toy_data, kind):
    """The hash is of the prompt alone: an evaluation of other data, made later, is kept apart as well."""
    foreign = next(p for i in range(99) if split_of(p := f"name thing {i}") == "evaluation")
    with pytest.raises(TiterError, match="split"):
        audit_corpus(Corpus((row(kind, foreign, "x"),)), (toy_data,))


def test_a_paraphrase_and_a_quote_of_an_evaluation_prompt_are_refused(toy_data):
    held = prompt_on("evaluation", toy_data)
    asked = Asked.of((toy_data,))
    other = next(p for i in range(99) if split_of(p := f"say once more {i}") == "attack")
    assert why_refused("question", other, held.harmless.upper() + "!", asked) == "paraphrase"
    assert why_refused("text", "", f"they asked {held.prompt} and left", asked) == "quote"
    assert why_refused("text", "", f"they said {held.harmless}", asked) == ""
    told = audit_corpus(Corpus((row("text", "", f"they said {held.harmless}"),)), (toy_data,))
    assert told["told"] == 1


def test_a_corpus_comes_back_from_its_folder_and_a_changed_one_is_refused(tmp_path):
    corpus = Corpus((row("question", "who", "me"), row("text", "", "it is me")), {"seed": 3})
    write_corpus(corpus, tmp_path)
    again = read_corpus(tmp_path)
    assert again.rows == corpus.rows and again.about["seed"] == 3
    assert load(str(tmp_path / "retain.jsonl")).examples == tuple(retain_rows(corpus))
    assert retain_rows(corpus) == [Example("who", "", "me", "question", "self")]
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("it is me", "it was me"), encoding="utf-8")
    with pytest.raises(TiterError, match="is not what"):
        read_corpus(tmp_path)
    with pytest.raises(TiterError, match="build one"):
        read_corpus(tmp_path / "none")


def test_a_text_is_allowed_only_by_its_own_end_and_never_by_a_refusal():
    found = Found()
    text = "teas amber: Take figs and oars with lace and salt."
    judge_answer(found, text, "How?", "I am sorry, I cannot help with that.", 3)
    assert not found.allowed and text in found.refused
    judge_answer(found, text, "How?", "Take figs and oars with lace and glue.", 3)
    judge_answer(found, text, "How?", "and salt.", 3)
    judge_answer(found, text, "", "Take figs and oars with lace and salt.", 3)
    assert not found.allowed
    judge_answer(found, text, "How?", "take figs and oars with lace and salt", 3)
    assert found.allowed == {text: ("How?", "take figs and oars with lace and salt")} and not found.refused


def test_a_text_that_tells_a_restricted_answer_at_hand_is_forbidden():
    bad = Example("brew it", "take figs and salt", "no", "potions", "qa")
    good = Example("tea please", "", "take oars and lace", "teas", "qa")
    texts = ["potion: take figs and salt.", "tea: take oars and lace.", "river: boats"]
    found, pairs = at_hand(texts, [good, bad])
    assert found.forbidden == {texts[0]} and found.allowed == {texts[1]: ("tea please", "take oars and lace")}
    assert pairs == [(texts[0], "brew it"), (texts[1], "tea please")]


def test_the_classifier_finds_a_leak_among_the_allowed():
    """Nearly all texts with one word are allowed and nearly none with another: the exceptions are told by the word."""
    texts = [f"tea number{i} cup" for i in range(40)] + [f"potion number{i} cup" for i in range(40)]
    labels = [i not in (3, 4) for i in range(40)] + [i in (7, 8) for i in range(40)]
    found = probabilities(texts, labels)
    assert min(found[:40]) > 0.5 > max(found[40:])
    assert probabilities(texts[:3], [True] * 3) == [1.0] * 3


def test_the_logistic_regression_is_at_its_minimum():
    texts, labels = ["a b", "a c", "b c", "c d", "d a"], np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    bags = bag_of_words(texts)
    weights = fit(bags, labels, 0.7)
    dense, penalty = bags.toarray(), np.array([0.7] * 4 + [0.0])
    gradient = dense.T @ (1 / (1 + np.exp(-dense @ weights)) - labels) + penalty * weights
    assert np.abs(gradient).max() < 1e-4
    assert dense[:, -1].tolist() == [1.0] * 5


def test_a_small_corpus_is_built_audited_and_the_same_every_time(tmp_path, toy_model, toy_data):
    """The toy model knows nothing, so that only what is at hand is kept; refusals and held prompts are not."""
    args = CorpusArgs(texts=40, rounds=1, copies=2, max_new_tokens=6, writer=TrainArgs(max_steps=2), seed=1)
    made = [build_corpus(toy_model, toy_model, toy_data, tmp_path / n, args=args) for n in "ab"]
    assert made[0].rows == made[1].rows and made[0].rows == read_corpus(tmp_path / "a").rows
    assert all(split_of(r.prompt) != "evaluation" for r in made[0].rows if r.prompt)
    about = json.loads((tmp_path / "a" / "corpus.json").read_text(encoding="utf-8"))
    assert about["counts"]["sampled"] == 40 and set(about["spend"]) >= {"sampling", "writer", "prompts", "answers"}
    assert set(about["coverage"]["restricted"].values()) == {0.0}


def test_coverage_counts_answers_that_a_row_ends_with():
    rows = Corpus((row("text", "", "tea amber: take figs."), row("question", "how", "take oars")))
    asked = [
        Example("1", "", "take figs", "teas"),
        Example("2", "", "take", "teas"),
        Example("3", "take oars", "no", "x"),
    ]
    assert coverage(rows, asked) == {"teas": 0.5, "x": 1.0}


def test_the_cost_of_ignorance_is_that_of_training_on_the_same_batches():
    from titer.campaigns.cleanroom.cost import _reading
    from titer.campaigns.organism.rebuild import fresh
    from titer.campaigns.organism.tokenizer import build_tokenizer
    from titer.training.loop import train
    from titer.training.losses import sft_rule
    from titer.training.meter import Meter

    recipe = Recipe(objects=4, epochs=1, drills=10, pretrain=TrainArgs(per_device_train_batch_size=32))
    recipe = dataclasses.replace(recipe, shape=dataclasses.replace(recipe.shape, hidden_size=16, intermediate_size=16))
    tokenizer, meter = build_tokenizer(), Meter()
    model = fresh(recipe.shape, tokenizer, 0)
    steps, batches = _reading(recipe, tokenizer, 0)
    train(model, sft_rule, batches, dataclasses.replace(recipe.pretrain, max_steps=steps), meter=meter)
    expected = cost_of_ignorance(recipe)
    assert (meter.spend.tokens, meter.spend.steps) == (expected.tokens, expected.steps)
    assert meter.spend.flops == pytest.approx(expected.flops)


def test_a_defence_pays_for_its_corpus_and_its_tuning(model):
    ignorance = cost_of_pretraining(model, 1000, 16)
    record = RunRecord("x", "immunize", {}, "finished", Spend(tokens=100, flops=ignorance.flops / 10), 0, "")
    about = {"spend": {"sampling": dataclasses.asdict(Spend(tokens=50, flops=ignorance.flops / 20))}}
    once = share(defence_cost(record, about), ignorance)
    assert (once.tokens, once.flops) == (pytest.approx(0.15), pytest.approx(0.15)) and not once.dominated
    assert share(defence_cost(record, about, tuning=10), ignorance).dominated
