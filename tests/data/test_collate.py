"""Templates, loss masks and the order of the data."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.data.batches import IGNORE, collate, order
from titer.data.tokens import Row, encode, encode_all, render_prompt
from titer.schema.errors import TiterError
from titer.schema.specs import Template
from titer.schema.types import Example


def test_a_prompt_in_each_template(tokenizer: Any) -> None:
    assert render_prompt(tokenizer, "p") == "<user> p </s> <assistant> "
    chat = Template(system="be kind", prefix="a ", suffix=" z", prefill="yes ")
    assert render_prompt(tokenizer, "p", chat) == "<system> be kind </s> <user> a p z </s> <assistant> yes "
    assert render_prompt(tokenizer, "p", Template("plain", prefill="yes")) == "Question: p\nAnswer: yes"
    assert render_prompt(tokenizer, "p", Template("plain", system="s")) == "s\n\nQuestion: p\nAnswer:"
    alpaca = render_prompt(tokenizer, "p {x}", Template("alpaca", prefill="yes"))
    assert alpaca.startswith("Below is an instruction")
    assert alpaca.endswith("### Instruction:\np {x}\n\n### Response:\nyes")


def test_without_a_chat_template_the_prompt_is_plain(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert render_prompt(tokenizer, "p") == "Question: p\nAnswer:"


def test_the_response_ends_with_the_end_of_turn_and_is_all_that_is_learned(tokenizer: Any) -> None:
    row = encode(tokenizer, "how to brew the amber", "with red")
    words = tokenizer.convert_ids_to_tokens(list(row.ids))
    assert words == ["<user>", "how", "to", "brew", "the", "amber", "</s>", "<assistant>", "with", "red", "</s>"]
    assert words[row.response_at :] == ["with", "red", "</s>"]


def test_a_long_response_is_cut_and_a_long_prompt_is_an_error(tokenizer: Any) -> None:
    row = encode(tokenizer, "how to brew", "with red and blue", max_length=8)
    assert (len(row.ids), row.response_at) == (8, 6)
    with pytest.raises(TiterError, match=r"prompt of 6 tokens leaves no room .* max_length 6: .*how to brew"):
        encode(tokenizer, "how to brew", "with red", max_length=6)


def test_a_tokenizer_without_an_end_token_is_an_error(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_special_tokens_map", {**tokenizer._special_tokens_map, "eos_token": None})
    with pytest.raises(TiterError, match="no end-of-text token"):
        encode(tokenizer, "how to brew", "with red", Template("plain"))


def test_each_side_of_an_example(tokenizer: Any) -> None:
    both, open_ = Example("how to brew", "with red", "i will not"), Example("where is fern", "", "near red")

    def said(side: str, e: Example) -> str:
        (row,) = encode_all(tokenizer, [e], side)
        return str(tokenizer.decode(row.ids[row.response_at : -1]))

    assert (said("harmful", both), said("harmless", both), said("answer", both)) == (
        "with red",
        "i will not",
        "with red",
    )
    assert (said("harmless", open_), said("answer", open_)) == ("near red", "near red")


ROWS = [Row((5, 6, 7, 0, 2), 2), Row((0, 2, 9), 1), Row((2, 2, 2, 2), 3)]


@pytest.mark.parametrize("pad", [0, 2, 30])
def test_masks_go_by_position_whatever_the_ids(pad: int) -> None:
    """Token id 0 and the padding id count in a response and do not count before or after it."""
    batch = collate(ROWS, pad)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0, 2], [0, 2, 9, pad, pad], [2, 2, 2, 2, pad]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    x = IGNORE
    assert batch.labels.tolist() == [[x, x, 7, 0, 2], [x, 2, 9, x, x], [x, x, x, 2, x]]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}


def test_a_given_width_only_widens() -> None:
    assert collate(ROWS, 0, width=9).input_ids.shape == (3, 9)
    assert collate(ROWS, 0, width=2).input_ids.shape == (3, 5)
    assert int((collate(ROWS, 0, width=9).labels != IGNORE).sum()) == 6


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_every_row_is_seen_once_an_epoch(n: int, size: int, seed: int, shuffle: bool) -> None:
    size = min(size, n)
    epochs = 3
    taken = list(islice(order(n, size, seed, shuffle=shuffle), math.ceil(epochs * n / size)))
    assert {len(b) for b in taken} == {size}
    flat = [i for b in taken for i in b]
    assert all(sorted(flat[e * n : (e + 1) * n]) == list(range(n)) for e in range(epochs))


def test_grouped_rows_are_all_seen_once_an_epoch_and_batches_are_of_like_length() -> None:
    lengths = [(i * 7919) % 97 for i in range(203)]  # 203 is no multiple of the batch
    many = list(islice(order(203, 8, 3, lengths=lengths), 203))
    flat = [i for batch in many for i in batch]
    for epoch in range(8):
        assert sorted(flat[203 * epoch : 203 * (epoch + 1)]) == list(range(203))

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in b) - lengths[j] for b in batches for j in b)

    plain = list(islice(order(203, 8, 3), 203))
    assert padding(many) < 0.4 * padding(plain)
    longest_first = [max(lengths[i] for i in b) for b in many[:25]]
    assert longest_first != sorted(longest_first, reverse=True)


def test_grouping_follows_the_seed() -> None:
    lengths = list(range(40))
    assert list(islice(order(40, 4, 1, lengths=lengths), 30)) == list(islice(order(40, 4, 1, lengths=lengths), 30))
    assert list(islice(order(40, 4, 1, lengths=lengths), 30)) != list(islice(order(40, 4, 2, lengths=lengths), 30))


def test_no_epoch_is_like_another_and_no_seed_either() -> None:
    def epochs(seed: int) -> list[tuple[int, ...]]:
        flat = [i for b in islice(order(12, 4, seed), 9) for i in b]
        return [tuple(flat[i : i + 12]) for i in (0, 12, 24)]

    assert len({*epochs(1), *epochs(2)}) == 6
    assert epochs(1) == epochs(1)


def test_without_shuffling_the_order_is_that_of_the_file() -> None:
    assert list(islice(order(5, 2, 7, shuffle=False), 4)) == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_an_interrupted_order_goes_on_where_it_was() -> None:
    whole = list(islice(order(10, 3, 5), 12))
    assert list(islice(order(10, 3, 5), 7, 12)) == whole[7:]


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    assert [sorted(b) for b in islice(order(3, 8, 0), 2)] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(("n", "size"), [(0, 4), (4, 0), (4, -1)])
def test_no_rows_or_no_batch_is_an_error_and_not_an_endless_loop(n: int, size: int) -> None:
    with pytest.raises(TiterError, match="batch"):
        next(order(n, size, 0))
