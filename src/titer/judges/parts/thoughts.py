"""Thoughts before an answer: what is graded is the answer, and a thought that was cut off has none.

Known are the tags of Qwen3, DeepSeek-R1, SmolLM3, Magistral and their like, and the channels of gpt-oss, also where
their special tokens were stripped.
"""

from __future__ import annotations

import re

TAGS = r"think|thinking|thought|thoughts|reasoning|reason"
BEGUN = re.compile(rf"<(?:\w+:)?(?:{TAGS})>|\[THINK\]|◁think▷", re.IGNORECASE)
ENDED = re.compile(rf"</(?:\w+:)?(?:{TAGS})>|\[/THINK\]|◁/think▷", re.IGNORECASE)
CHANNEL = re.compile(r"\s*(?:<\|channel\|>\s*)?(?:analysis|commentary)(?:<\|message\|>|(?=[A-Z\"'(]))")
FINAL = re.compile(r"(?:<\|start\|>\s*)?assistant(?:<\|channel\|>)?\s*final(?:<\|message\|>)?")


def answer_of(text: str) -> str | None:
    """What a text says after its last thought; None when it begins a thought and does not end it."""
    if CHANNEL.match(text):
        final = list(FINAL.finditer(text))
        return text[final[-1].end() :].strip() if final else None
    ends = [m.end() for m in ENDED.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    if BEGUN.search(rest):
        return None
    return rest.strip() if ends else text
