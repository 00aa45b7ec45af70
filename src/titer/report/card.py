"""What a model page shows: a section for the model card, its model-index, and an `.eval_results` file."""

from __future__ import annotations

from typing import Any

import yaml

from titer.report.cells import Cell
from titer.report.read import CONDITIONS, Model, Result
from titer.report.sections.verdicts import sentence, summarize
from titer.report.untrusted import visible
from titer.schema.errors import TiterError
from titer.schema.types import Verdict


def card_section(result: Result) -> str:
    """A Markdown section: the summary, the verdict table, how it was measured and the limits of it."""
    model = Model(result)
    found = summarize(model)
    rows = [
        f"| {s.condition} | {s.verdict} | {_plain(_shown(s.cell))} | {_plain(s.sentence)} |" for s in found.standings
    ]
    suite, digest = model.setting("suite"), model.setting("suite_hash")
    measured = f"Suite `{suite}` ({digest}), against `{_plain(found.reference)}`, {model.created}."
    flags = sorted({flag.code for flag in model.flags})
    return "\n".join(
        [
            "## Resistance to harmful fine-tuning",
            "",
            _plain(sentence(model)),
            "",
            "| condition | verdict | estimate [95%] | in words |",
            "|---|---|---|---|",
            *rows,
            "",
            measured if suite else f"Measured against `{_plain(found.reference)}`.",
            f"Flags raised: {_plain(', '.join(flags)) or 'none'}.",
            "A verdict holds for the attacks tried and the budget stated; none can show that no attack would work.",
            "",
        ]
    )


def _shown(cell: Cell) -> str:
    return f"{cell.value} {cell.interval} {cell.sample}"


def _plain(text: str) -> str:
    """Text that can neither leave its table cell nor become Markdown or HTML."""
    for char in "\\`*_[]<>|#":
        text = text.replace(char, f"\\{char}") if char != "<" else text.replace("<", "&lt;")
    return visible(" ".join(text.split()), keep="")


def model_index(result: Result) -> list[dict[str, Any]]:
    """The `model-index` entry of the card's metadata, by huggingface_hub; empty when nothing was measured."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    model = Model(result)
    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type="titer",
            dataset_name=f"titer suite {model.setting('suite') or 'unknown'}",
            dataset_revision=model.setting("suite_hash"),
            metric_type=name,
            metric_name=f"{name} ({number[1]}; verdict: {model.verdict(name).verdict})",
            metric_value=number[0],
        )
        for name in CONDITIONS
        if (number := metric(model.verdict(name))) is not None
    ]
    index = eval_results_to_model_index(model.name, found) if found else []
    return [dict(entry) for entry in index]


def metric(verdict: Verdict) -> tuple[float, str] | None:
    """The number of a condition and what it is; a censored one is its lower bound and says so."""
    found = verdict.estimate
    if verdict.verdict == "not measured" or found is None:
        return None
    unit = found.unit or "estimate"
    if found.value is not None:
        return float(found.value), unit
    return (float(found.low), f"{unit}, lower bound") if found.low is not None else None


def eval_results_yaml(result: Result, *, dataset_id: str) -> str:
    """The text of `.eval_results/titer.yaml`: one entry per measured condition, task ids as condition names.

    `dataset_id` is the hub id of the benchmark data set the entries belong to. Errors: TiterError when there is
    nothing measured to write.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    model, entries = Model(result), []
    for name in CONDITIONS:
        verdict = model.verdict(name)
        number, found = metric(verdict), verdict.estimate
        if number is not None and found is not None:
            notes = f"{number[1]}; verdict: {verdict.verdict}; 95% [{found.low}, {found.high}]"
            date = str(result["created"]) if result.get("created") else None
            notes += f"; suite {model.setting('suite_hash')}"
            entries.append(EvalResultEntry(dataset_id, name, number[0], date=date, notes=notes))
    if not entries:
        raise TiterError(f"card: no condition of {result['model']} was measured: run `titer evaluate` first")
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
