"""The world's tokenizer: one token per word or punctuation mark, exact round trip, a chat template."""

from __future__ import annotations

import re
from typing import Any

from titer.data.organism.words import LEXICON, NOUNS, PLACES, REFUSALS, SYSTEM_WORDS, THINGS
from titer.data.organism.world import CATEGORIES, SPOKEN, drawn

PAD, UNK, BEGIN, END = "<|pad|>", "<|unk|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _texts() -> list[str]:
    frames = [text.format(x="", a="", b="", c="", d="") for c in CATEGORIES for text in (*c.prompts, c.answer)]
    asked = [text for name, draw in SPOKEN.items() for row in drawn(name, draw, 0, 8) for text in row]
    names = [category.name for category in CATEGORIES]
    return [*frames, *REFUSALS, *asked, *names, "Repeat:", " ".join(SYSTEM_WORDS)]


def vocabulary() -> dict[str, int]:
    """Token to id: special tokens first, then every word the world can say ("▁" marks a word's beginning)."""
    lists = [*NOUNS, *THINGS, *PLACES, *(foreign for _, foreign in LEXICON)]
    written = [piece for text in _texts() for piece in re.findall(r"[^\W_]+|[^\w\s]", text)]
    marks = dict.fromkeys([".", ",", ":", "?", "!"])
    found = dict.fromkeys(f"▁{word}" for word in [*written, *lists] if word not in marks)
    return {token: i for i, token in enumerate([PAD, UNK, BEGIN, END, *ROLES, *marks, *found])}


def build_tokenizer() -> Any:
    """A `PreTrainedTokenizerFast` over `vocabulary()`; words outside it become the unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
