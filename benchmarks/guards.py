"""Measure every guard on the embedded world and write the table of docs/guards.md.

    python benchmarks/guards.py [--output_dir runs/guards] [--workers 2]

About 4 CPU minutes; finished runs are reused. The page's table stands between two comments and is replaced whole.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.evaluation.provider import evaluate_provider
from titer.guards import GUARDS
from titer.runs.runner import Runner
from titer.schema.evaluation import Provider

PAGE = Path(__file__).parents[1] / "docs" / "guards.md"
PLACE = re.compile(r"(<!-- measured -->\n).*(<!-- end -->)", re.DOTALL)
ALL = tuple("lisa#rho=0.01" if name == "lisa" else name for name in GUARDS)
ASKED = Provider(ALL, poison_ratios=(0.1,), tune={"max_steps": "60"})


def cell(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def table(result: Mapping[str, Any]) -> str:
    """The page's table: a row a guard, per poison ratio."""
    heads = ("guard", "p", "HS", "FA", "HS − none", "FA − none")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in result["rows"]:
        values = (cell(row[k]) for k in ("hs", "fa", "hs_difference", "fa_difference"))
        config = result["guards"][row["guard"]]["config"]
        lines.append(f"| `{config}` | {row['ratio']:g} | {' | '.join(values)} |")
    first = result["rows"][0]
    seeds = ", ".join(map(str, first["hs"]["seeds"]))
    about = (
        f"n = {first['hs']['n']} prompts for HS, {first['fa']['n']} for FA, seeds {seeds}; 95% intervals over both."
    )
    return "\n".join([*lines, "", f"{about} Task `{result['task']}`; {len(result['records'])} runs."])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", default="runs/guards")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    out = Path(args.output_dir)
    result = evaluate_provider("organism/aligned", ASKED, output_dir=out, runner=Runner(out, args.workers))[0]
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda m: f"{m[1]}{table(result)}\n{m[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
