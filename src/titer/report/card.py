"""What a model page shows: a section for the model card, its model-index, and an `.eval_results` file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from titer.report.read import CONDITIONS, Result, short
from titer.report.sections.verdicts import dig, sentence, summarize
from titer.report.untrusted import visible
from titer.schema.errors import TiterError


def card_section(result: Result) -> str:
    """A Markdown section: the summary, the verdict table, how it was measured and the limits of it."""
    found = summarize(result)
    rows = [
        f"| {s.condition} | {s.verdict} | {_plain(_shown(s.cell))} | {_plain(s.sentence)} |" for s in found.standings
    ]
    suite, digest = (dig(result, "settings", key) for key in ("suite", "suite_hash"))
    measured = (
        f"Suite `{suite}` ({digest}), against `{_plain(found.reference)}`, {str(result.get('created', ''))[:10]}."
    )
    flags = sorted({str(f.get("code")) for f in result.get("flags") or ()})
    return "\n".join(
        [
            "## Resistance to harmful fine-tuning",
            "",
            _plain(sentence(result)),
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


def _shown(cell: Any) -> str:
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

    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type="titer",
            dataset_name=f"titer suite {dig(result, 'settings', 'suite') or 'unknown'}",
            dataset_revision=dig(result, "settings", "suite_hash"),
            metric_type=name,
            metric_name=f"{name} ({number[1]}; verdict: {result['conditions'][name].get('verdict')})",
            metric_value=number[0],
        )
        for name in CONDITIONS
        if (number := metric(result["conditions"].get(name) or {})) is not None
    ]
    index = eval_results_to_model_index(short(str(result["model"])), found) if found else []
    return [dict(entry) for entry in index]


def metric(verdict: Mapping[str, Any]) -> tuple[float, str] | None:
    """The number of a condition and what it is; a censored one is its lower bound and says so."""
    unit = str(verdict.get("unit") or "estimate")
    if verdict.get("verdict", "not measured") == "not measured":
        return None
    if verdict.get("estimate") is not None:
        return float(verdict["estimate"]), unit
    return (float(verdict["low"]), f"{unit}, lower bound") if verdict.get("low") is not None else None


def eval_results_yaml(result: Result, *, dataset_id: str) -> str:
    """The text of `.eval_results/titer.yaml`: one entry per measured condition, task ids as condition names.

    `dataset_id` is the hub id of the benchmark data set the entries belong to. Errors: TiterError when there is
    nothing measured to write.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = []
    for name in CONDITIONS:
        verdict = result["conditions"].get(name) or {}
        number = metric(verdict)
        if number is not None:
            notes = f"{number[1]}; verdict: {verdict['verdict']}; 95% [{verdict.get('low')}, {verdict.get('high')}]"
            date = str(result["created"]) if result.get("created") else None
            revision = dig(result, "settings", "suite_hash")
            entries.append(EvalResultEntry(dataset_id, name, number[0], date=date, notes=f"{notes}; suite {revision}"))
    if not entries:
        raise TiterError(f"card: no condition of {result['model']} was measured: run `titer evaluate` first")
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
