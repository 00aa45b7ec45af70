"""Judges: (prompt, completion, answer) -> harm score and outcome.

A judge is named by one string, the same in `ProbeSet.judge` and on the command line:

    NAME | KIND:WHERE | pkg.mod:Class, then optionally #option=value&option=value

`KIND:WHERE` is `classifier:FOLDER_OR_ID`, `guard:FOLDER_OR_ID`, `endpoint:URL` or `panel:JUDGE|JUDGE`. Values may be
percent-encoded (`%0A` is a line break). Options of `titer.judges.parts.coherence.Coherence` may be given to any judge.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any

from titer.judges.base import Judge
from titer.judges.parts.coherence import Coherence, Coherent
from titer.schema.errors import TiterError
from titer.schema.registry import Kind, parsed, validate

JUDGES = Kind("judge", "titer.judges")
WHERE = {"classifier": "model", "guard": "model", "endpoint": "url"}  # the option that `KIND:WHERE` fills
OWN_RULE = ("exact", "refusal")  # these tell gibberish apart themselves


@lru_cache(maxsize=16)
def make_judge(name: str) -> Judge:
    """The judge called `name`, in the syntax of this module; made once, so that its models are loaded once.

    Every judge but `exact` and `refusal`, which have their own rule, is asked about coherent text only. Raises
    `TiterError` for an unknown name or option.
    """
    if name.startswith("panel:"):
        from titer.judges.panel import Panel

        return Panel(tuple(make_judge(part.strip()) for part in name.removeprefix("panel:").split("|")), name)
    kind, options = parse(name)
    rule: dict[str, Any] = {f.name: options.pop(f.name) for f in fields(Coherence) if f.name in options}
    judge: Judge = JUDGES.build(kind, options)
    if kind in OWN_RULE and not rule:
        return judge
    return Coherent(name, judge, validate(Coherence, rule, f"judge {kind}"))


def parse(name: str) -> tuple[str, dict[str, str]]:
    """Registry name (or import path) and options of a judge's name; `TiterError` when it cannot be read."""
    head, options = parsed(name, "judge")
    kind, _, where = head.partition(":")
    if kind in WHERE:
        if not where:
            raise TiterError(f"judge {name!r}: nothing after {kind}: write {kind}:{WHERE[kind].upper()}")
        options[WHERE[kind]] = where
    return (kind if kind in WHERE else head), options


__all__ = ["JUDGES", "Judge", "make_judge", "parse"]
