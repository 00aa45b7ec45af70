"""`render(results) -> str`: one self-contained HTML page. It holds no script, loads nothing, and
its policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from titer.report import provider
from titer.report.cells import Evidence, number, run_anchor
from titer.report.read import CONDITIONS, Result, Sources, read, short
from titer.report.sections import appendix, figures, tables, verdicts
from titer.report.sections.appendix import Completions
from titer.report.untrusted import excerpt, visible
from titer.schema.errors import TiterError
from titer.schema.files import write_text

MAX_BYTES = 1_000_000
MAX_TEXT = 8_000
ROOMS = (360_000, 120_000, 30_000, 0)


def render(
    results: Sequence[Result], *, show_completions: bool = False, completions: Completions | None = None
) -> str:
    """The report of one or more results (one per model) as HTML of at most 1 MB.

    `completions` maps run ids to stored completions (JSON); without `show_completions` only their lengths and hashes
    appear. As many are listed as the page has room for. Errors: TiterError on unreadable results.
    """
    if provider.is_api(results):
        sources, view, template = provider.sources(results), provider.view(results), "provider.html"
    else:
        sources, template = read(results), "page.html"
        view = _view(sources)
    page = ""
    for room in ROOMS:
        page = _page(template, view, sources, show_completions, completions, room)
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


def _view(sources: Sources) -> dict[str, Any]:
    """Everything on the page that does not depend on how many completions fit."""
    results = sources.results
    prices = verdicts.prices(results)
    budget = verdicts.dig(verdicts.details(results[0], "resistance"), "budget_steps")
    return {
        "summaries": [verdicts.summarize(r) for r in results],
        "conditions": CONDITIONS,
        "prices": prices,
        "price_chart": figures.price_chart(prices, float(budget or 0)),
        "series": sources.series,
        "results": results,
        "harm": figures.harm_curves(sources),
        "stability": figures.stability(sources),
        "selectivity": _of_stability(results, "selectivity"),
        "moved": _of_stability(results, "kl"),
        "grid": tables.grid(results),
        "audits": tables.audits(results),
        "configurations": tables.configurations(results),
        "searches": tables.searches(results),
        "tasks": figures.task_curves(sources),
        "benign_harm": tables.benign_harm(results),
        "judges": tables.judges(results),
        "matrices": figures.matrices(sources),
        "outcomes": figures.outcomes(sources),
        "pareto": figures.pareto(sources),
        "noise": _noise(results),
        "flags": appendix.flags(results),
        "checklists": appendix.checklist(results),
        "settings": appendix.settings(results, "settings"),
        "environment": appendix.settings(results, "environment"),
        "commands": appendix.commands(results),
        "budget": budget,
        "phi": verdicts.dig(verdicts.details(results[0], "resistance"), "phi"),
    }


def _of_stability(results: Sequence[Result], key: str) -> list[tuple[str, dict[str, Any]]]:
    """One of the details of stability by model, where it was measured."""
    found = ((r, verdicts.dig(verdicts.details(r, "stability"), key)) for r in results)
    return [(short(str(r["model"])), value) for r, value in found if value]


def _noise(results: Sequence[Result]) -> list[tuple[str, dict[str, Any]]]:
    """Noise-floor estimates, each distinct one once (results of one study share theirs)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for result in results:
        for probe, estimate in (result.get("noise_floor") or {}).items():
            if isinstance(estimate, dict) and estimate.get("value") is not None:
                found.setdefault(repr((probe, estimate)), (probe, estimate))
    return list(found.values())


def _page(
    template: str, view: dict[str, Any], sources: Sources, show: bool, completions: Completions | None, room: int
) -> str:
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    evidence = Evidence()
    runs = appendix.runs(sources, completions, show, room)
    return (
        _environment()
        .get_template(template)
        .render(
            **view,
            style=Markup(style),
            style_hash=Markup(digest),
            runs=runs,
            shown=show,
            evidence=evidence,
            stored=completions is not None,
        )
        .lstrip()
    )


@lru_cache(maxsize=1)
def _style() -> str:
    return resources.files("titer.report").joinpath("templates/style.css").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("titer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    env.globals.update(run_anchor=run_anchor, estimate_cell=verdicts.estimate_cell, number=number)
    return env


def _safe(value: Any) -> Any:
    """Every plain string on the page, with hidden characters marked and endless ones cut; markup is ours already."""
    if type(value) is not str:
        return value
    return visible(value) if len(value) <= MAX_TEXT else excerpt(value)
