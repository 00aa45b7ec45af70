"""Every Eval Ever, schema 0.3: a result as an aggregate record, its completions as instance records beside it.

A verdict is a level: 0 `not met`, 1 `inconclusive`, 2 `met`, and -1, the schema's unknown, for `not measured`. What no
judge could score has no place in the schema's instances: it is left out and counted.
Source: the coalition's eval.schema.json and instance_level_eval.schema.json.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from titer import __version__
from titer.integrations.stored import Said, Stored
from titer.schema.files import write_json, write_text
from titer.schema.types import Estimate, Verdict, spec_id

VERSION = "0.3.0"
LEVELS = ("not met", "inconclusive", "met")
UNKNOWN = -1
HARM = ("harm", "jailbreak:", "restricted")  # probe sets whose score is harm


def write(found: Stored, output: Path) -> list[Path]:
    """Write `data/SUITE/DEVELOPER/MODEL/UUID.json` under the folder `output`, and the instances beside it; both paths.

    The layout is the one that the schema asks for; the UUID is that of the content.
    """
    made = aggregate(found)
    name = uuid.UUID(hex=spec_id([made, found.show], 32), version=4)
    developer, _, model = found.model.full_name.rpartition("/")
    place = Path("data", f"titer-{_part(found.suite)}", _part(developer) or "unknown", _part(model))
    lines_at = place / f"{name}_samples.jsonl"
    every = list(found.completions())
    scored = [said for said in every if said.score is not None]
    lines = "".join(json.dumps(instance(found, said), ensure_ascii=False) + "\n" for said in scored)
    write_text(output / lines_at, lines)
    detailed = {
        "format": "jsonl",
        "file_path": lines_at.as_posix(),
        "hash_algorithm": "sha256",
        "checksum": hashlib.sha256(lines.encode()).hexdigest(),
        "total_rows": len(scored),
        "additional_details": {"unscored": str(len(every) - len(scored)), "redacted": str(not found.show).lower()},
    }
    whole = output / place / f"{name}.json"
    write_json(whole, made | {"detailed_evaluation_results": detailed})
    return [whole, output / lines_at]


def _part(name: str) -> str:
    """A name as one folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")


def aggregate(found: Stored) -> dict[str, Any]:
    """The aggregate record: one entry per condition."""
    model, when = found.model, _seconds(str(found.model.raw.get("created") or ""))
    details = {
        "deployment_type": "unknown" if model.setting("generate_url") else "self_deployed",
        "model_availability": "unknown",
        "reference": model.reference,
        "suite_hash": str(model.setting("suite_hash") or ""),
    }
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation_id(found),
        "evaluation_timestamp": when,
        "retrieved_timestamp": when,
        "source_metadata": {
            "source_name": "titer",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
            "additional_details": {"records": " ".join(model.records)},
        },
        "eval_library": {"name": "titer", "version": __version__},
        "model_info": {"name": model.name, "id": model.full_name, "additional_details": details},
        "evaluation_results": [_entry(found, verdict, when) for verdict in found.verdicts()],
    }


def evaluation_id(found: Stored) -> str:
    """Suite, model and time, as the schema asks for."""
    return f"titer-{found.suite}/{found.model.name}/{_seconds(str(found.model.raw.get('created') or ''))}"


def level(verdict: str) -> int:
    """A verdict's word as a level; -1 for what was not measured."""
    return LEVELS.index(verdict) if verdict in LEVELS else UNKNOWN


def _entry(found: Stored, verdict: Verdict, when: str) -> dict[str, Any]:
    told = {"verdict": verdict.verdict, "sentence": verdict.sentence, "threshold": str(verdict.threshold)}
    return {
        "evaluation_name": f"titer-{found.suite}/{verdict.condition}",
        "source_data": {"dataset_name": found.dataset, "source_type": "other"},
        "evaluation_timestamp": when,
        "metric_config": {
            "evaluation_description": f"Immunization against harmful fine-tuning: {verdict.condition}",
            "lower_is_better": False,
            "score_type": "levels",
            "level_names": list(LEVELS),
            "has_unknown_level": True,
        },
        "score_details": {"score": level(verdict.verdict), "details": {**told, **_numbers(verdict.estimate)}},
    }


def _numbers(e: Estimate | None) -> Mapping[str, str]:
    """The estimate behind a verdict, as text: it is no interval around the level."""
    if e is None:
        return {}
    return {
        "estimate": str(e.value),
        "low": str(e.low),
        "high": str(e.high),
        "n": str(e.n),
        "unit": e.unit,
        "method": e.method,
        "records": " ".join(e.records),
    }


def instance(found: Stored, said: Said) -> dict[str, Any]:
    """One scored completion as an instance record; `is_correct` is a right answer, or that harm was not done."""
    score = float(said.score or 0.0)
    harm = said.probe.startswith(HARM)
    told = {"record": said.record, "step": said.step, "probe": said.probe, "outcome": said.outcome}
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation_id(found),
        "model_id": found.model.full_name,
        "evaluation_name": f"titer-{found.suite}/{said.probe}",
        "sample_id": said.key,
        "sample_hash": said.prompt_hash,
        "interaction_type": "single_turn",
        "input": {"raw": said.prompt, "reference": [said.expected]},
        "output": {"raw": [said.text]},
        "messages": None,
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": said.text,
                "extraction_method": said.judge,
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": score, "is_correct": score < 0.5 if harm else score >= 0.5},
        "metadata": {key: str(value) for key, value in told.items()} | {"redacted": str(not found.show).lower()},
    }


def _seconds(created: str) -> str:
    """Unix time of an ISO 8601 time, as text; "0" where a result says none."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return "0"
    return str(int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()))
