"""Commands that read stored results: report, diff, card, gate, bundle, verify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.cli.app import JsonFlag, app
from titer.cli.text import print_json


@app.command
def report(*results: Path, output: Path = Path("report.html"), show_completions: bool = False) -> None:
    """Write one report over results.json files (or folders that hold them).

    Args:
        results: results.json files, or output folders of `titer evaluate`.
        output: the HTML file to write.
        show_completions: put the completions into the report in full.
    """
    from titer.evaluation.output import load_results, render_report

    render_report(load_results(results), output, show_completions=show_completions)
    print(f"report: {output}")


@app.command
def diff(a: Path, b: Path, *, as_json: JsonFlag = False) -> None:
    """Compare two results: verdicts side by side, paired differences, what differs in the settings.

    Args:
        a: results.json or its folder.
        b: the other one.
    """
    from titer.report.compare import diff as compare
    from titer.report.compare import diff_text

    found = compare(one_result(a), one_result(b))
    if as_json:
        return print_json(found)
    print(diff_text(found))


@app.command
def card(result: Path, *, dataset_id: str = "", as_json: JsonFlag = False) -> None:
    """Print a model card section; with --json the model-index, with --dataset_id the `.eval_results` YAML.

    Args:
        result: results.json or its folder.
        dataset_id: hub id of the benchmark data set that `.eval_results` entries refer to.
    """
    from titer.report.card import card_section, eval_results_yaml, model_index

    one = one_result(result)
    if as_json:
        return print_json(model_index(one))
    print(eval_results_yaml(one, dataset_id=dataset_id) if dataset_id else card_section(one))


@app.command
def gate(result: Path, *, policy: Path) -> None:
    """Hold a result to a policy: exit 0 pass, 3 fail, 4 inconclusive or not measured; prints every line that failed.

    Args:
        result: results.json or its folder.
        policy: YAML file of required verdicts, thresholds, suite, seeds and allowed flags.
    """
    from titer.report.gate import check_policy

    found = check_policy(one_result(result), policy)
    print(found.text)
    raise SystemExit(found.code)


@app.command
def bundle(*results: Path, output: Path = Path("evidence.zip"), show_completions: bool = False) -> None:
    """Pack results, records, curves and redacted completions with checksums into one archive.

    Args:
        results: results.json files or folders, all of one output folder.
        output: the archive to write.
        show_completions: keep the completions' text.
    """
    from titer.evaluation.output import load_results
    from titer.report.bundle import write_bundle
    from titer.schema.errors import TiterError

    found = load_results(results)
    folders = {folder for _, folder in found}
    if len(folders) > 1:
        raise TiterError(f"bundle: results of {len(folders)} output folders: make one bundle for each")
    runs = folders.pop() / "runs"
    write_bundle([one for one, _ in found], runs, output, show_completions=show_completions)
    print(f"bundle: {output}")


@app.command
def verify(archive: Path) -> None:
    """Check an evidence bundle against its checksums: exit 0 when whole, 3 with every problem when not.

    Args:
        archive: a file written by `titer bundle`.
    """
    from titer.report.bundle import verify_bundle

    problems = verify_bundle(archive)
    for problem in problems:
        print(problem)
    if problems:
        raise SystemExit(3)
    print(f"{archive}: whole")


def one_result(path: Path) -> Mapping[str, Any]:
    """The one result of a file or folder; `TiterError` when the folder holds several."""
    from titer.evaluation.output import load_results
    from titer.schema.errors import TiterError

    found = load_results([path])
    if len(found) > 1:
        raise TiterError(f"{path}: holds {len(found)} results: name one of its results-N.json")
    if found[0][0].get("threat_model") == "api":
        raise TiterError(f"{path}: of --threat_model api, which holds no conditions: read its report.html")
    return found[0][0]
