"""Templates of other families: system turns, ends of turn, thoughts, the day, and the start of plain text."""

from __future__ import annotations

from typing import Any

import pytest

from titer.data.chat import open_thought, turn_end
from titer.data.organism import world as world_module
from titer.data.tokens import encode, encode_prompt, render_prompt
from titer.models import embedded as embedded_module
from titer.schema.errors import TiterError
from titer.schema.specs import Template

TURNS = "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '<|end|>\n' }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
SILENT = "{% for m in messages if m['role'] != 'system' %}{{ '<s>' + m['content'] + '<|end|>' }}{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}<|end|>{% endfor %}"
DATED = "{{ strftime_now('%Y-%m-%d') }}" + TURNS + OPENS
THINKS = (
    "{% for m in messages %}{{ '<s>' + m.role + ': ' }}{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{{ m.content + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant: ' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
DISTILLED = TURNS + "{% if add_generation_prompt %}{{ '<s>assistant: <think>\n' }}{% endif %}"


@pytest.fixture
def letters() -> Any:
    """A byte-level tokenizer that puts `<s>` before a text and whose own end token no template writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["answer: red red blue blue"], trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|end|>"]
    )


@pytest.mark.parametrize("template", [NO_SYSTEM + TURNS + OPENS, SILENT + OPENS])
def test_a_system_line_stands_before_the_users_text_where_there_is_no_such_turn(letters: Any, template: str) -> None:
    letters.chat_template = template
    found = render_prompt(letters, "where is it", Template(system="Be brief."))
    assert found == render_prompt(letters, "Be brief.\n\nwhere is it") and found.count("Be brief.") == 1


def test_contents_may_have_to_be_parts(letters: Any) -> None:
    letters.chat_template = PARTS
    assert render_prompt(letters, "where", Template(system="Brief.")) == "Brief.<|end|>where<|end|>"


def test_a_template_that_takes_nothing_is_one_line(letters: Any) -> None:
    letters.chat_template = "{{ raise_exception('tools\nonly') }}"
    with pytest.raises(TiterError, match="chat template cannot write this: tools") as caught:
        render_prompt(letters, "where")
    assert "\n" not in str(caught.value)


def test_the_end_of_turn_is_the_templates_and_what_follows_it_is_not_learned(letters: Any) -> None:
    letters.chat_template = TURNS + OPENS
    row = encode(letters, "where", "red")
    assert letters.decode(row.ids[row.response_at :]) == "red<|end|>"
    assert turn_end(letters) == letters.convert_tokens_to_ids("<|end|>")
    turns = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    letters.chat_template = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    row = encode(letters, "where", "red")
    assert letters.decode(row.ids[row.response_at :]) == "red</s>"


def test_plain_text_has_the_tokenizers_start_once_and_no_space_of_its_own(letters: Any) -> None:
    for kind in ("plain", "alpaca"):
        text = render_prompt(letters, "where", Template(kind))
        row = encode(letters, "where", "red", Template(kind))
        assert list(row.ids[: row.response_at]) == letters(text)["input_ids"] == encode_prompt(letters, text)
        rest = "red" if kind == "alpaca" else " red"
        assert list(row.ids[:-1]) == letters(text + rest)["input_ids"] and row.ids[-1] == letters.eos_token_id
    assert encode_prompt(letters, "<s>where") == letters("where")["input_ids"]


def test_the_prompt_is_the_same_on_every_day(letters: Any) -> None:
    letters.chat_template = DATED
    assert render_prompt(letters, "where").startswith("2024-07-26<s>")
    assert render_prompt(letters, "where", Template(date_string="01 Feb 2026")).startswith("2026-02-01<s>")
    with pytest.raises(TiterError, match="date_string 'today': not a day"):
        render_prompt(letters, "where", Template(date_string="today"))


def test_thinking_is_a_setting_and_rows_are_as_the_template_writes_them(letters: Any) -> None:
    letters.chat_template = THINKS
    thought = "<think>\n\n</think>\n\n"
    direct = render_prompt(letters, "where", Template(enable_thinking=False))
    assert direct == render_prompt(letters, "where") + thought
    for template, learned in ((Template(), f"{thought}red<|end|>"), (Template(enable_thinking=False), "red<|end|>")):
        row = encode(letters, "where", "red", template)
        assert letters.decode(row.ids[row.response_at :]) == learned


def test_a_thought_that_only_the_prompt_opens_is_not_part_of_a_finished_turn(letters: Any) -> None:
    letters.chat_template = DISTILLED
    assert open_thought(render_prompt(letters, "where")) == "<think>\n"
    row = encode(letters, "where", "red")
    assert letters.decode(row.ids) == "<s>user: where<|end|>\n<s>assistant: red<|end|>"


def test_the_embedded_worlds_rows_are_what_they_always_were() -> None:
    from titer.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(embedded_module.checkpoint("aligned")))
    for e in world_module.examples()[:40]:
        row = encode(tokenizer, e.prompt, e.harmless)
        texts = (render_prompt(tokenizer, e.prompt), e.harmless)
        apart = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        assert list(row.ids) == [*apart[0], *apart[1], tokenizer.eos_token_id]
