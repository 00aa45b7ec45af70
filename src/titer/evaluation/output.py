"""What an evaluation leaves: results.json, report.html, and what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.conditions.flags import disagreeing
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS, read_json, write_json, write_text
from titer.schema.types import to_json

SEARCH = "search.json"  # what `titer search` leaves in its output folder
JUDGES = "judges.json"  # in an output folder: rates and agreement over all of its runs, for the report


def write_results(found: Sequence[Mapping[str, Any]], out: Path, *, show_completions: bool = False) -> Path:
    """Write results.json (numbered when there are several) and the report over all of them; the report's path."""
    for i, one in enumerate(found, start=1):
        write_json(out / ("results.json" if len(found) == 1 else f"results-{i}.json"), one)
    render_report([(one, out) for one in found], out / "report.html", show_completions=show_completions)
    return out / "report.html"


def load_results(paths: Sequence[str | Path]) -> list[tuple[Mapping[str, Any], Path]]:
    """Stored results with the folder of their runs, from results.json files or folders of `evaluate`."""
    found: list[tuple[Mapping[str, Any], Path]] = []
    for path in map(Path, paths):
        files = sorted(path.glob("results*.json")) if path.is_dir() else [path]
        if not files:
            raise TiterError(f"{path}: no results.json in this folder: pass an output folder of `titer evaluate`")
        found += [(read_json(file), file.parent) for file in files]
    if not found:
        raise TiterError("report: no results given: pass results.json files or folders of `titer evaluate`")
    return found


def render_report(
    found: Sequence[tuple[Mapping[str, Any], Path]], output: str | Path, *, show_completions: bool = False
) -> None:
    """Write one HTML report over stored results.

    Completions, what `titer judge` found of them, and what `titer search` found of the model are looked up in each
    result's folder.
    """
    from titer.report.page import render

    completions: dict[str, Any] = {}
    for one, folder in found:
        store = Store(folder)
        for run_id in one["records"]:
            if run_id not in completions and (store.folder(run_id) / COMPLETIONS).is_file():
                completions[run_id] = to_json(store.completions(run_id))
    whole = [{**one, **beside(one, folder)} for one, folder in found]
    write_text(Path(output), render(whole, show_completions=show_completions, completions=completions))


def beside(one: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What lies beside a result: `judges`, with a flag where they disagree, and `search` when it was of this model."""

    found: dict[str, Any] = {}
    if (folder / JUDGES).is_file():
        judged = read_json(folder / JUDGES)
        kappas = {" / ".join(a["judges"]): a["kappa"] for a in judged["agreements"] if a["kappa"] is not None}
        flags = disagreeing(kappas)
        found = {"judges": judged, "flags": [*one["flags"], *to_json(flags)]}
    if (folder / SEARCH).is_file() and (searched := read_json(folder / SEARCH))["model"] == one["model"]:
        found["search"] = searched
    return found
