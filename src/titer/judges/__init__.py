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
from urllib.parse import unquote

from titer.judges.base import Judge
from titer.judges.parts.coherence import Coherence, Coherent
from titer.schema.errors import TiterError
from titer.schema.registry import build, validate

JUDGES = {
    "exact": "titer.judges.exact:ExactJudge",
    "refusal": "titer.judges.refusal:RefusalJudge",
    "classifier": "titer.judges.classifier:ClassifierJudge",
    "guard": "titer.judges.guard:GuardJudge",
    "endpoint": "titer.judges.endpoint:EndpointJudge",
    "panel": "titer.judges.panel:Panel",
}
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

        return Panel(name, tuple(make_judge(part.strip()) for part in name.removeprefix("panel:").split("|")))
    kind, options = parse(name)
    rule = {f.name: options.pop(f.name) for f in fields(Coherence) if f.name in options}
    judge: Judge = build("judge", JUDGES, kind, options)
    if kind in OWN_RULE and not rule:
        return judge
    return Coherent(name, judge, validate(Coherence, rule, f"judge {kind}"))


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """Registry name (or import path) and options of a judge's name; `TiterError` when it cannot be read."""
    head, _, tail = name.partition("#")
    kind, _, where = head.partition(":")
    options: dict[str, Any] = {}
    if kind in WHERE:
        if not where:
            raise TiterError(f"judge {name!r}: nothing after {kind}: write {kind}:{WHERE[kind].upper()}")
        options[WHERE[kind]] = where
    for part in filter(None, tail.split("&")):
        key, sign, value = part.partition("=")
        if not sign:
            raise TiterError(f"judge {name!r}: option {part!r} has no value: write {part}=VALUE")
        options[key] = unquote(value)
    return (kind if kind in WHERE else head), options


__all__ = ["JUDGES", "Judge", "make_judge", "parse"]
