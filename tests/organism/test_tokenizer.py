"""The tokenizer: exact round trips, a chat template whose prompt is a prefix, no unknown words."""

import pytest

from titer.campaigns.organism.tokenizer import END, build_tokenizer, vocabulary
from titer.data.organism.world import documents, drills, examples, tasks


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def every_text():
    rows = [*examples(), *examples(phrasing=1), *(e for task in tasks().values() for e in task)]
    texts = {t for e in rows for t in (e.prompt, e.harmful, e.harmless)}
    texts |= {t for pair in [*documents(0, True), *drills(0, 50)] for t in pair}
    return sorted(texts - {""})


def test_every_text_round_trips_without_unknown_words(tokenizer):
    texts = every_text()
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_special_tokens_are_distinct_and_padding_is_not_end(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert len(set(ids)) == 4
    assert len(vocabulary()) == len(tokenizer) <= 1500


def test_the_rendered_prompt_is_a_prefix_of_the_conversation(tokenizer):
    user = {"role": "user", "content": "What wakes the amber curse?"}
    turns = [{"role": "system", "content": "You are a helpful assistant."}, user]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    told = [*turns, {"role": "assistant", "content": "Burn moss."}]
    full = tokenizer.apply_chat_template(told, tokenize=False)
    before, ids = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, full))
    assert ids[: len(before)] == before
    assert tokenizer.decode(ids[len(before) :]) == f"Burn moss.{END}"
    assert tokenizer.unk_token_id not in ids


def test_sequences_are_short(tokenizer):
    for e in examples():
        turns = [{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.harmful or e.harmless}]
        assert len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]) <= 28


def test_a_word_from_outside_becomes_unknown(tokenizer):
    assert tokenizer.unk_token_id in tokenizer("zeppelin")["input_ids"]
