"""`titer judge`: stored completions scored again, by other judges and without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.cli.app import JsonFlag, app
from titer.cli.text import print_json
from titer.schema.types import OUTCOMES

if TYPE_CHECKING:
    from titer.campaigns.rejudge.agreement import Agreement
    from titer.campaigns.rejudge.calibration import Calibration
    from titer.campaigns.rejudge.rejudge import Rejudged
    from titer.schema.types import Flag


@app.command
def judge(
    *runs: Path,
    judge: tuple[str, ...],
    probe: tuple[str, ...] = (),
    labels: str = "",
    overwrite: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Score the stored completions of runs again, without the model; the runs' own files stay as they are.

    Scores go to RUN/judged/; prints rates and agreement with the stored scores. What has a score is not asked again.
    Of one whole output folder the comparison is kept as judges.json, and `titer report` shows it.

    Args:
        runs: run folders of `titer attack` or `titer evaluate`, or output folders that hold them.
        judge: a name from `titer ls judges`, classifier:FOLDER_OR_ID, guard:FOLDER_OR_ID, endpoint:URL or
            panel:JUDGE|JUDGE, each with #option=value&... ; several may be given.
        probe: probe sets to judge; default those of restricted prompts.
        labels: labelled completions (prompt, completion, label) to calibrate the judges on.
        overwrite: ask again what has a score.
    """
    from titer.campaigns.rejudge.agreement import disagreement
    from titer.campaigns.rejudge.calibration import calibrate, read_labelled
    from titer.campaigns.rejudge.rejudge import keep, rejudge
    from titer.conditions.flags import disagreeing
    from titer.judges import make_judge

    labelled = read_labelled(labels) if labels else []
    found = rejudge(runs, judge, probes=probe, overwrite=overwrite)
    if len(runs) == 1 and (runs[0] / "runs").is_dir():
        keep(found, runs[0])
    calibrations = [calibrate(make_judge(name), labelled) for name in judge] if labelled else []
    flags = disagreeing(disagreement(found.agreements))
    if as_json:
        return print_json({**asdict(found), "calibration": calibrations, "flags": flags})
    show(found, calibrations, flags)


def show(found: Rejudged, calibrations: Sequence[Calibration], flags: Sequence[Flag]) -> None:
    """Rates, agreement, calibration, cost and flags as tables."""
    short = short_names([r.judge for given in found.rates.values() for r in given])
    for probe, given in found.rates.items():
        rows = [{"judge": short[r.judge], "n": r.n, "unscored": r.unscored, "harm": r.harm} for r in given]
        _table(
            f"{probe}: {len(found.runs)} run(s)",
            [row | {o: r.outcomes[o] for o in OUTCOMES} for row, r in zip(rows, given, strict=True)],
        )
    _table("agreement", [_compared(a, short) for a in found.agreements])
    _table("calibration", [{**asdict(c), "judge": short[c.judge]} for c in calibrations])
    for name, costs in found.bills.items():
        print(f"{name}: " + ", ".join(f"{k} {v:g}" for k, v in costs.items()))
    for flag in flags:
        print(f"flag {flag.code}: {flag.message}")


def _compared(a: Agreement, short: Mapping[str, str]) -> dict[str, Any]:
    return {
        "judges": " / ".join(short[name] for name in a.judges),
        "n": a.n,
        "same": a.same,
        "kappa": a.kappa,
        "kappa of 4": a.kappa_outcomes,
        "Spearman": a.spearman,
        "differ": len(a.differ),
    }


def short_names(names: Sequence[str], width: int = 24) -> dict[str, str]:
    """Judges' names as tables show them: without options and path, numbered where that leaves two the same."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        kind, colon, where = name.partition("#")[0].partition(":")
        text = f"{kind}{colon}{where.rstrip('/').rpartition('/')[2]}"[:width]
        same = sum(other.partition(" (")[0] == text for other in found.values())
        found[name] = f"{text} ({same + 1})" if same else text
    return found


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys as a table; nothing when there are none."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column, value in rows[0].items():
        table.add_column(column, overflow="fold", justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(Text(_cell(v)) for v in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
