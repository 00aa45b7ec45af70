"""Conversations as a tokenizer's chat template writes them, on a fixed day, with or without a system turn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from titer.schema.errors import TiterError
from titer.schema.specs import Template

Turns = list[dict[str, Any]]
DATE = "%d %b %Y"
DIRECTIVES = ("d", "-d", "b", "B", "Y", "y", "m", "-m", "a", "A", "j", "H", "I", "M", "S", "p", "F")
ANSWER = "titer"  # a response whose place in a rendered conversation is looked for
THOUGHT = r"(?:<(?:\w+:)?(think|thinking|thought|reasoning)>|\[(THINK)\])"
OPEN = re.compile(rf"{THOUGHT}\s*\Z")


class Chat(str):
    """Text from a chat template: its special tokens stand in it, so no BOS is put before it."""

    __slots__ = ()


def write_prompt(tokenizer: Any, user: str, template: Template) -> Chat:
    """The user's turn, after the system line if there is one, up to the start of the assistant's turn."""
    return Chat(_rendered(tokenizer, user, template, None) + template.prefill)


def write_answered(tokenizer: Any, user: str, said: str, template: Template) -> str:
    """The same conversation with what the assistant said in its turn, as the template writes it."""
    return _rendered(tokenizer, user, template, said)


def joined(prefill: str, response: str) -> str:
    """A response after the words it was made to start with."""
    return f"{prefill} {response}" if prefill and response and not prefill[-1].isspace() else prefill + response


def write_turns(tokenizer: Any, turns: Turns, template: Template = Template(), *, opens: bool = True) -> str:
    """Turns through the chat template; what the template raises is a `TiterError` in one line."""
    import jinja2

    day = _day(template.date_string)
    try:
        return str(
            tokenizer.apply_chat_template(
                turns,
                chat_template=_on_the_day(str(tokenizer.get_chat_template()), day),
                tokenize=False,
                add_generation_prompt=opens,
                **_switches(template),
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = tokenizer.name_or_path or "tokenizer"
        raise TiterError(f"{name}: its chat template cannot write this: {said}: mend it or use kind plain") from None


def _switches(template: Template) -> dict[str, Any]:
    """What the template is told apart from the turns."""
    thinks = template.enable_thinking
    mode = {} if thinks is None else {"enable_thinking": thinks, "thinking": thinks}
    return {"date_string": template.date_string, **mode}


def _day(date: str) -> datetime:
    try:
        return datetime.strptime(date, DATE)
    except ValueError:
        raise TiterError(f"template: date_string {date!r}: not a day: write it as in 26 Jul 2024") from None


def _on_the_day(written: str, day: datetime) -> str:
    """A chat template whose `strftime_now` tells `day`: transformers hands templates no functions of ours."""
    if "strftime_now" not in written:
        return written
    told = "".join(f" | replace('%{letter}', '{day.strftime('%' + letter)}')" for letter in DIRECTIVES)
    return f"{{% macro strftime_now(form) %}}{{{{ form{told} }}}}{{% endmacro %}}{{{{ '' }}}}{written}"


def _rendered(tokenizer: Any, user: str, template: Template, response: str | None) -> str:
    """The conversation in the first form that the template takes without leaving any of it out.

    Not every template has a system turn: its text then stands before the user's, as Google and Mistral advise.
    """
    asked = [part for part in (template.system, user) if part.strip()]
    problem = None
    for turns in _forms(user, template.system, response):
        try:
            text = write_turns(tokenizer, turns, template, opens=response is None)
        except TiterError as error:
            problem = problem or error
            continue
        if all(_squeezed(part) in _squeezed(text) for part in asked):
            return text
    name = tokenizer.name_or_path or "tokenizer"
    raise problem or TiterError(f"{name}: its chat template leaves the prompt out: use kind plain")


def _forms(user: str, system: str, response: str | None) -> Iterator[Turns]:
    """The conversation with a system turn, with its text in the user's, and both with contents as lists of parts."""
    said = [] if response is None else [("assistant", response)]
    plain = [[("system", system), ("user", user), *said]] if system else []
    plain.append([("user", f"{system}\n\n{user}" if system else user), *said])
    for turns in plain:
        yield [{"role": role, "content": content} for role, content in turns]
    for turns in plain:
        yield [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def turn_end(tokenizer: Any, template: Template = Template()) -> int | None:
    """The token that the chat template ends an assistant's turn with; the tokenizer's own where it writes none."""
    if not tokenizer.chat_template:
        own: int | None = tokenizer.eos_token_id
        return own
    return _turn_end(tokenizer, str(tokenizer.chat_template), tokenizer.eos_token_id, template)


@lru_cache(maxsize=64)
def _turn_end(tokenizer: Any, written: str, own: int | None, template: Template) -> int | None:
    """`written` is the template's text: a tokenizer that was given another one is asked again."""
    whole = write_answered(tokenizer, ANSWER, ANSWER, replace(template, prefill=""))
    after = tokenizer(whole.rpartition(ANSWER)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in _marks(tokenizer) else own


def _marks(tokenizer: Any) -> set[int]:
    """Tokens that stand for more than their letters (a tokenizer may add runs of spaces, too)."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}


def open_thought(prompt: str) -> str:
    """The tag with which a prompt makes the model start inside a thought; "" for the others."""
    found = OPEN.search(prompt)
    return found[0] if found else ""


def without_end(ids: Sequence[int], end: int) -> list[int]:
    """Ids up to their first end token, without it."""
    return list(ids[: ids.index(end)]) if end in ids else list(ids)
