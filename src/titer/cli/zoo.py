"""`titer zoo`: every defence tuned alike and attacked alike, and the page that shows it."""

from __future__ import annotations

import sys
from pathlib import Path

from titer.cli.app import JsonFlag, app
from titer.cli.text import print_json, progress


@app.command
def zoo(
    file: Path,
    *,
    output_dir: Path = Path("runs/zoo"),
    page: Path | None = None,
    workers: int = 1,
    as_json: JsonFlag = False,
) -> None:
    """Tune every defence of a zoo file with the same budget, attack the best settings alike, and write one table.

    May be stopped or killed and started again: finished runs are reused.

    Args:
        file: a zoo file, such as configs/zoo.yaml.
        output_dir: where runs, models, results and zoo.json go.
        page: the Markdown page to write; its plot goes into img/ beside it. Default: OUTPUT_DIR/zoo.md.
        workers: processes.
        as_json: print zoo.json.
    """
    from titer.campaigns.zoo.file import read_zoo
    from titer.campaigns.zoo.zoo import run_zoo, write_page

    checked = read_zoo(file)
    with progress("zoo", as_json) as report:
        found = run_zoo(checked, output_dir, workers=workers, report=report, say=_tell)
    target = page or output_dir / "zoo.md"
    write_page(found, target, f"titer zoo {file} --output_dir {output_dir} --page {target}")
    if as_json:
        return print_json(found)
    print(f"page: {target}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
