"""A generative judge by folder or hub id: asked in its own format, its answer read strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from titer.data.chat import Chat, write_turns
from titer.data.tokens import encode_prompt
from titer.judges.parts.load import causal
from titer.judges.parts.outcome import scored
from titer.judges.parts.templates import GUARDS, GuardFormat, defuse, fill, longest_first, markers
from titer.schema.errors import TiterError, unknown
from titer.schema.types import Score


@dataclass(frozen=True, slots=True)
class GuardJudge:
    """A generative safety judge by folder or hub id: HarmBench, Llama Guard, WildGuard, Qwen3Guard, StrongREJECT.

    `template` is a name of `titer.judges.parts.templates.GUARDS`; "" takes the one of the hub id. `prompt_file` holds
    another text with `{prompt}` and `{completion}`, read by the template's parser. Greedy; an answer that cannot be
    read, and a completion that does not fit the context, is not scored.
    """

    name: ClassVar[str] = "guard"
    model: str
    template: str = ""
    prompt_file: str = ""
    dtype: str = "bfloat16"
    device: str = "cpu"
    batch_size: int = 8

    def score(self, prompts: Sequence[str], completions: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """One score per completion; targets are not looked at."""
        form, text = self._format(), self._text()
        model, tokenizer = causal(self.model, self.dtype, self.device)
        asked = [_render(tokenizer, form, text, p, c) for p, c in zip(prompts, completions, strict=True)]
        answers = _answers(model, tokenizer, asked, form.max_new_tokens, self.batch_size)
        return [self._read(form, a, c) for a, c in zip(answers, completions, strict=True)]

    def _read(self, form: GuardFormat, answer: str | None, completion: str) -> Score:
        reading = None if answer is None else form.read(answer)
        if reading is None:
            return Score(None, None, self.name)
        return scored(reading[0], completion, self.name, reading[1])

    def _format(self) -> GuardFormat:
        if not self.template:
            found = [g for g in GUARDS.values() if self.model in g.models]
            if not found:
                raise TiterError(f"judge {self.model}: which format? Pass #template= one of {', '.join(GUARDS)}")
            return found[0]
        if self.template not in GUARDS:
            raise unknown("judge template", self.template, GUARDS)
        return GUARDS[self.template]

    def _text(self) -> str:
        if not self.prompt_file:
            return self._format().text
        try:
            text = Path(self.prompt_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise TiterError(f"judge {self.model}: prompt_file {self.prompt_file}: cannot be read: check it") from None
        if "{completion}" not in text:
            raise TiterError(f"judge {self.model}: prompt_file {self.prompt_file}: has no {{completion}}")
        return text


def _render(tokenizer: Any, form: GuardFormat, text: str, prompt: str, completion: str) -> str:
    """What the judge reads; control strings inside the two untrusted texts are defused."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1]
    controls = longest_first([*special, *markers(text)])
    prompt, completion = defuse(prompt, controls), defuse(completion, controls)
    if text:
        # some tokenizers put no start before a text, and the template has one
        start = tokenizer.bos_token or ""
        return Chat((start if not text.startswith(start) else "") + fill(text, prompt, completion))
    if not tokenizer.chat_template:
        raise TiterError("judge: this template uses the model's own chat template and there is none: pass prompt_file")
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    if form.parts:
        turns = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]  # type: ignore[dict-item]
    return Chat(write_turns(tokenizer, turns, opens=form.opens))


def _answers(
    model: Any, tokenizer: Any, asked: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[str | None]:
    """Greedy answers in order; None for what does not fit the context."""
    from titer.models.generate import generate

    limit = model.config.get_text_config().max_position_embeddings - max_new_tokens
    lengths = [len(encode_prompt(tokenizer, a)) for a in asked]
    fitting = [i for i, n in enumerate(lengths) if n <= limit]
    texts = generate(
        model, tokenizer, [asked[i] for i in fitting], max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    found: list[str | None] = [None] * len(asked)
    for i, text in zip(fitting, texts, strict=True):
        found[i] = text
    return found
