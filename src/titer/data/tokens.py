"""Prompts by template, and rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """The text before the response: the prompt in its template, up to and with the assistant turn's start."""
    user = f"{template.prefix}{prompt}{template.suffix}"
    if template.kind == "chat" and tokenizer.chat_template:
        turns = [{"role": "system", "content": template.system}] if template.system else []
        turns.append({"role": "user", "content": user})
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) + template.prefill
    system = f"{template.system}\n\n" if template.system else ""
    if template.kind == "alpaca":
        return system + ALPACA.format(prompt=user) + template.prefill
    return f"{system}Question: {user}\nAnswer: {template.prefill}"


def encode(tokenizer: Any, prompt: str, response: str, template: Template = Template(), max_length: int = 256) -> Row:
    """One prompt and its response as ids; the response ends with the end-of-turn token and is cut at `max_length`.

    Raises `TiterError` when the prompt alone fills `max_length`, and for a tokenizer that cannot end a text.
    """
    if tokenizer.eos_token_id is None:
        raise TiterError("tokenizer: no end-of-text token to end a response with: set its eos_token")
    before = tokenizer(render_prompt(tokenizer, prompt, template), add_special_tokens=False)["input_ids"]
    answer = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
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
