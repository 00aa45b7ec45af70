"""`titer demo` and `titer real`: whole campaigns in one call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from titer.cli.app import Flat, JsonFlag, Running, app, explained
from titer.cli.text import progress, show_results

CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class DemoRun(Running):
    """How the demo is done.

    Attributes:
        output_dir: where runs, models, results and report.html go; finished runs are reused.
        workers: processes; default one per core.
        overwrite: redo runs that are already there.
    """

    output_dir: Path = Path("runs/demo")
    workers: int = CORES


@explained
@dataclass(frozen=True)
class RealRun(DemoRun):
    """The same for the real model."""

    output_dir: Path = Path("runs/real")


@app.command
def demo(
    *,
    run: Annotated[DemoRun, Flat] = DemoRun(),
    as_json: JsonFlag = False,
) -> None:
    """Immunize the embedded model two ways, attack everything, judge the four conditions, write a report.

    Args:
        as_json: print the results as JSON.
    """
    _campaign("demo", run, as_json)


@app.command
def real(
    *,
    run: Annotated[RealRun, Flat] = RealRun(),
    as_json: JsonFlag = False,
) -> None:
    """The same on a real language model, SmolLM2-135M, whose restricted domain is harmless facts about countries.

    Args:
        as_json: print the results as JSON.
    """
    _campaign("real", run, as_json)


def _campaign(name: Literal["demo", "real"], run: Running, as_json: bool) -> None:
    from titer.campaigns import demo as campaigns

    with progress(name, as_json) as report:
        call = campaigns.demo if name == "demo" else campaigns.real
        found, path = call(run.runner(report))
    show_results(found, path, as_json)
