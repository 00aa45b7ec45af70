"""`render(results) -> str`: one self-contained HTML page. It holds no script, loads nothing, and
its policy forbids both.

A section is a file in `sections/` with `TITLE`, `view(reading)` and the template `templates/sections/NAME.html`, which
gets what `view` returned as `view`; nothing (None, empty) is not shown.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from markupsafe import Markup

from titer.report import provider, sections
from titer.report.cells import Evidence, number, run_anchor
from titer.report.read import CONDITIONS, Completions, Reading, Result, read
from titer.report.sections import flags, verdicts
from titer.report.untrusted import html, styled
from titer.schema.errors import TiterError
from titer.schema.files import write_text

MAX_BYTES = 1_000_000
ROOMS = (360_000, 120_000, 30_000, 0)
ORDER = (
    "verdicts", "price", "flags", "curves", "stability", "trainability", "generalization", "outcomes", "judges",
    "tradeoff", "noise", "guidelines", "settings", "runs",
)  # fmt: skip
OPEN = ("verdicts", "price")  # the rest is folded
PROVIDER = ("settings", "runs")  # of these, what a provider's page has too
Views = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A section as shown."""

    name: str
    title: str
    open: bool
    body: Markup


def render(
    results: Sequence[Result], *, show_completions: bool = False, completions: Completions | None = None
) -> str:
    """The report of one or more results (one per model) as HTML of at most 1 MB.

    `completions` maps run ids to stored completions (JSON); without `show_completions` only their lengths and hashes
    appear. As many are listed as the page has room for. Errors: TiterError on unreadable results.
    """
    values: Mapping[str, Any]
    if provider.is_api(results):
        reading, names = provider.reading(results), list(PROVIDER)
        template, values = "provider.html", provider.view(results)
    else:
        reading, names = read(results), listed()
        template, values = "page.html", _head(reading)
    reading = replace(reading, completions=completions, show=show_completions, room=ROOMS[0])
    views = {name: _module(name).view(reading) for name in names}
    page = ""
    for room in ROOMS:
        views["runs"] = _module("runs").view(replace(reading, room=room))
        page = _page(template, values, reading, views)
        if len(page.encode()) <= MAX_BYTES:
            return page
    raise TiterError(f"report: {len(page.encode()):,} bytes, over 1 MB: report fewer results at once")


def write(
    path: str | Path,
    results: Sequence[Result],
    *,
    show_completions: bool = False,
    completions: Completions | None = None,
) -> Path:
    """Render to a file, atomically; returns its path."""
    target = Path(path)
    text = render(results, show_completions=show_completions, completions=completions)
    write_text(target, text)
    return target


def listed() -> list[str]:
    """The sections that lie in the folder, in their order; those that have no place in it come last."""
    found = sorted(module.name for module in pkgutil.iter_modules(sections.__path__))
    return [*(name for name in ORDER if name in found), *(name for name in found if name not in ORDER)]


def _module(name: str) -> Any:
    return import_module(f"{sections.__name__}.{name}")


def _head(reading: Reading) -> Mapping[str, Any]:
    """What stands above the sections."""
    return {
        "bottom_line": verdicts.bottom_line(reading.models),
        "summaries": verdicts.view(reading),
        "not_tried": verdicts.not_tried(reading),
        "flags": flags.view(reading),
        "conditions": CONDITIONS,
        "budget": reading.budget,
        "phi": reading.phi,
        "created": reading.models[0].created,
    }


def _page(template: str, values: Mapping[str, Any], reading: Reading, views: Views) -> str:
    """The page from what its sections show. Sections are drawn in turn, so that `evidence` knows every number."""
    evidence = Evidence()
    shown = {name: view for name, view in views.items() if view}
    shared: dict[str, Any] = {
        "evidence": evidence,
        "series": reading.series,
        "names": list(shown),
        "conditions": CONDITIONS,
        "number": number,
        "run_anchor": run_anchor,
    }
    drawn = [_section(name, view, shared) for name, view in shown.items()]
    return styled(template, **{**shared, **values}, sections=drawn)


def _section(name: str, view: Any, shared: Mapping[str, Any]) -> Section:
    body = Markup(html(f"sections/{name}.html", view=view, **shared))
    return Section(name, _module(name).TITLE, name in OPEN, body)
