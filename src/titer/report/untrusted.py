"""Untrusted text made safe to look at: every invisible or reordering character becomes a visible mark.

HTML escaping is the template's job; this is about what escaping leaves alone (controls, bidi, ANSI, zero-width,
endless lines and stacked accents), any of which can hide text from a reader or break the page's layout.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_ACCENT = {"Mn", "Me"}
MAX_LINE, MAX_LINES, MAX_ACCENTS, MAX_TEXT = 300, 20, 3, 8_000


def mark(char: str) -> str:
    """A character that cannot be seen, as one that can: U+001B as its control picture, others as <U+XXXX>."""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def visible(text: str, keep: str = "\n\t") -> str:
    """`text` with hidden characters marked and runs of more than MAX_ACCENTS combining marks cut."""
    if text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    accents = 0
    for char in text:
        category = unicodedata.category(char)
        accents = accents + 1 if category in _ACCENT else 0
        if accents > MAX_ACCENTS:
            continue
        out.append(mark(char) if category in _HIDDEN and char not in keep else char)
    return "".join(out)


def excerpt(text: str, max_line: int = MAX_LINE, max_lines: int = MAX_LINES) -> str:
    """The beginning of `text`, safe to look at; what was cut is counted in characters and lines."""
    head = text[: max_line * max_lines]  # never walk a megabyte to show a page
    lines = head.split("\n")
    shown = [_short(line, max_line) for line in lines[:max_lines]]
    result = visible("\n".join(shown))
    if len(lines) > max_lines or len(text) > len(head):
        result += f"\n… [{len(text):,} characters in all]"
    return result


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """`text` as one line that is safe to print to a terminal, cut after `limit` characters."""
    return visible(_short(text, limit), keep="")


def _short(line: str, limit: int) -> str:
    return line if len(line) <= limit else f"{line[:limit]} … [+{len(line) - limit:,} characters]"


def redacted(text: str) -> str:
    """What stands for a text that is not shown: its length and the start of its SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{len(text):,} characters · sha256 {digest}…"


def html(template: str, **values: Any) -> str:
    """A template of `templates/` filled in: everything escaped, hidden characters marked, endless strings cut."""
    return _templates().get_template(template).render(**values).lstrip()


def styled(template: str, **values: Any) -> str:
    """A page with style.css inside, and its hash in the page's policy."""
    style = asset("style.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return html(template, style=Markup(style), style_hash=Markup(digest), **values)


def markdown(template: str, **values: Any) -> str:
    """A Markdown template of `templates/` filled in, as it is: for values that are ours."""
    return _plain().get_template(template).render(**values)


def asset(name: str) -> str:
    """The text of a file in `templates/`, as it is."""
    return resources.files("titer.report").joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("titer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )


@lru_cache(maxsize=1)
def _plain() -> Environment:
    return Environment(
        loader=PackageLoader("titer.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _safe(value: Any) -> Any:
    """Every plain string on a page made safe to look at; markup is ours already."""
    if type(value) is not str:
        return value
    return visible(value) if len(value) <= MAX_TEXT else excerpt(value)
