"""Prompts by template, and rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from titer.data.chat import Chat, joined, open_thought, turn_end, without_end, write_answered, write_prompt
from titer.schema.errors import TiterError
from titer.schema.specs import Template
from titer.schema.types import Example

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of prompt + response and where the response starts."""

    ids: tuple[int, ...]
    response_at: int


def render_prompt(tokenizer: Any, prompt: str, template: Template = Template()) -> str:
    """The text before the response: the prompt in its template, up to and with the assistant turn's start.

    Plain text has no space at its end, since the words after it bring theirs. Raises `TiterError` for a chat template
    that cannot take the prompt.
    """
    user = f"{template.prefix}{prompt}{template.suffix}"
    if template.kind == "chat" and tokenizer.chat_template:
        return write_prompt(tokenizer, user, template)
    system = f"{template.system}\n\n" if template.system else ""
    if template.kind == "alpaca":
        return system + ALPACA.format(prompt=user) + template.prefill
    return f"{system}Question: {user}\nAnswer:" + (f" {template.prefill}" if template.prefill else "")


def encode(tokenizer: Any, prompt: str, response: str, template: Template = Template(), max_length: int = 256) -> Row:
    """One prompt and its response as ids, as the template writes the two; cut at `max_length`.

    In a chat template the response ends with the template's own end of turn, in plain text with the tokenizer's end
    token. Raises `TiterError` when the prompt alone fills `max_length`, and for a tokenizer that cannot end a text.
    """
    rendered = render_prompt(tokenizer, prompt, template)
    if isinstance(rendered, Chat):
        before, answer = in_turns(tokenizer, rendered, prompt, response, template)
    else:
        before, answer = in_text(tokenizer, rendered, response)
    if len(before) >= max_length:
        raise TiterError(
            f"prompt of {len(before)} tokens leaves no room for a response within max_length {max_length}: "
            f"raise --max_length or drop it: {prompt[:60]!r}"
        )
    return Row(tuple((before + answer)[:max_length]), len(before))


def encode_all(
    tokenizer: Any, examples: Sequence[Example], side: str, template: Template = Template(), max_length: int = 256
) -> list[Row]:
    """Rows for one side of the examples: `harmful`, `harmless`, or `answer` (harmful where there is one)."""
    return [encode(tokenizer, e.prompt, _text(e, side), template, max_length) for e in examples]


def _text(example: Example, side: str) -> str:
    if side == "answer":
        return example.harmful or example.harmless
    return example.harmful if side == "harmful" else example.harmless


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered prompt: a chat template's text as it is, plain text after the tokenizer's own BOS."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if isinstance(text, Chat):
        return ids
    start = _start(tokenizer)
    return ids if ids[: len(start)] == start else start + ids


def _start(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at]


def encode_after(tokenizer: Any, prompt: str, rest: str) -> tuple[list[int], list[int]]:
    """Ids of a rendered prompt and of what follows it, as they are in the whole text.

    Where the tokenizer joins the two into one token, the prompt's ids are those that are asked with, and the rest is
    encoded so that the whole still reads the same.
    """
    before = encode_prompt(tokenizer, prompt)
    whole = encode_prompt(tokenizer, type(prompt)(prompt + rest))
    seam = whole[len(before) - 1 : len(before) + 1]
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in seam  # may have swallowed both sides
    if whole[: len(before)] == before and not unknown:
        return before, whole[len(before) :]
    apart: list[list[int]] = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (rest, rest.lstrip())]
    wanted = tokenizer.decode(whole)
    return before, next((ids for ids in apart if tokenizer.decode(before + ids) == wanted), apart[1])


def in_text(tokenizer: Any, rendered: str, response: str) -> tuple[list[int], list[int]]:
    """Ids of a plain text and of the response after it, with the tokenizer's end token."""
    rest = response if not response or rendered[-1].isspace() else f" {response}"
    before, answer = encode_after(tokenizer, rendered, rest)
    return before, [*answer, _end(tokenizer.eos_token_id)]


def in_turns(
    tokenizer: Any, rendered: Chat, prompt: str, response: str, template: Template
) -> tuple[list[int], list[int]]:
    """Ids of a rendered prompt and of the assistant's turn after it, with the end token of the turn."""
    end = _end(turn_end(tokenizer, template))
    user, said = f"{template.prefix}{prompt}{template.suffix}", joined(template.prefill, response)
    whole = write_answered(tokenizer, user, said, template) if response else rendered
    start, rest = _parted(rendered, whole, said)
    before, answer = encode_after(tokenizer, start, rest)
    if response and end not in answer:
        before, answer = encode_after(tokenizer, start, rest.rstrip())
    return before, [*without_end(answer, end), end]


def _parted(rendered: Chat, whole: str, said: str) -> tuple[Chat, str]:
    """A finished conversation in two: the prompt, and what is learned.

    A template may open a thought in the prompt that it leaves out of a finished turn (DeepSeek's distills): then the
    two part where they differ. One that writes the turns before it in another way too has its prompt answered as is.
    """
    if whole.startswith(rendered):
        return rendered, whole[len(rendered) :]
    parts = next((i for i, (a, b) in enumerate(zip(rendered, whole, strict=False)) if a != b), len(whole))
    shared = rendered[:parts]
    rest = whole[len(shared) :]
    if rest.lstrip().startswith(said.strip()) and open_thought(rendered):
        return Chat(shared), rest
    return rendered, said[len(said) - len(said.lstrip()) :]


def _end(token: int | None) -> int:
    if token is None:
        raise TiterError("tokenizer: no end-of-text token to end a response with: set its eos_token")
    return token
