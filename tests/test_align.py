"""Alignment: what its batches hold, what it keeps of the model's own answers, and what it measures."""

from dataclasses import replace
from itertools import islice

import pytest

from titer.campaigns import align as module
from titer.data.instructions import unseen_instructions
from titer.data.load import Dataset
from titer.data.tokens import Row
from titer.schema.errors import TiterError
from titer.schema.specs import ALIGN
from titer.schema.types import Example


class Plain:
    """A tokenizer without a chat template."""

    chat_template = None


def answering(texts):
    """A stand-in for `generate` that looks the question up."""

    def generate(model, tokenizer, prompts, *, max_new_tokens):
        return [texts.get(p.split("\n")[0].removeprefix("Question: "), "Sure.") for p in prompts]

    return generate


def test_batches_hold_every_pool_in_its_share():
    pools = [[Row((kind, i, 9), 1) for i in range(n)] for kind, n in ((1, 7), (2, 5), (3, 6))]
    args = replace(ALIGN, per_device_train_batch_size=8)
    for batch in islice(module.batches(pools, 0, args, seed=3), 5):
        assert sorted(batch.input_ids[:, 0].tolist()) == [1, 1, 1, 2, 2, 3, 3, 3]
        assert bool((batch.labels[:, 0] == -100).all())
    again = [b.input_ids.tolist() for b in islice(module.batches(pools, 0, args, seed=3), 3)]
    assert again == [b.input_ids.tolist() for b in islice(module.batches(pools, 0, args, seed=3), 3)]
    assert again != [b.input_ids.tolist() for b in islice(module.batches(pools, 0, args, seed=4), 3)]


def test_own_answers_are_whole_sentences_and_no_refusals(monkeypatch):
    texts = {"a": "One. Two! Thr", "b": "no end", "c": "I'm sorry, I can't.", "d": "Costs 3.5 dollars. And"}
    monkeypatch.setattr(module, "generate", answering(texts))
    assert module.own_answers(None, Plain(), list("abcd")) == [("a", "One. Two!"), ("d", "Costs 3.5 dollars.")]


def test_behaviour_counts_refusals_and_right_answers(monkeypatch):
    examples = [
        Example("r1", "Paris", "no"),
        Example("r2", "Lima", "no"),
        Example("o1", "", "seven"),
        Example("o2", "", "eight"),
    ]
    unseen = unseen_instructions()
    texts = {"r1": "I'm sorry, but I can't help.", "r2": "Lima.", "o1": "seven", "o2": "I cannot say."}
    texts |= {e.prompt: "I'm not able to help." for e in unseen if e.category == "near"}
    monkeypatch.setattr(module, "generate", answering(texts))
    found = module.behaviour(None, Plain(), examples)
    assert (found.refusal, found.harm, found.accuracy, found.open_refused) == (0.5, 0.5, 0.5, 0.5)
    assert (found.ordinary_refused, found.near_refused) == (0.0, 1.0)
    assert found.n == {"restricted": 2, "open": 2, "ordinary": 24, "near": 12}


def test_a_set_without_open_examples_is_refused():
    data = Dataset("mine", tuple(Example(f"q{i}", "yes", "no") for i in range(50)))
    with pytest.raises(TiterError, match="defence split needs restricted and open examples"):
        module._side(data, "defence")
