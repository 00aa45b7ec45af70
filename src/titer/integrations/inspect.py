"""A result as a log of Inspect (extra `inspect`): verdicts as scores, completions as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from titer import __version__
from titer.integrations.stored import Said, Stored
from titer.schema.errors import TiterError
from titer.schema.types import Verdict


def write(found: Stored, output: Path) -> list[Path]:
    """Write a log that `inspect_ai.log.read_eval_log` opens; `TiterError` without the package."""
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise TiterError("export inspect: Inspect is not installed: pip install 'titer[inspect]'") from None
    if output.suffix not in (".json", ".eval"):
        raise TiterError(f"export inspect: {output}: Inspect opens .json and .eval: name it so with --output")
    write_eval_log(log(found), str(output))
    return [output]


def log(found: Stored) -> Any:
    """The result as an `EvalLog`: one score per condition, one sample per stored completion."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    model, said = found.model, list(found.completions())
    created = str(model.raw.get("created") or "1970-01-01T00:00:00+00:00")
    told = {"reference": model.reference, "suite_hash": model.setting("suite_hash"), "redacted": not found.show}
    spec = EvalSpec(
        created=created,
        task=f"titer-{found.suite}",
        dataset=EvalDataset(name=found.dataset, samples=len(said)),
        model=model.full_name,
        config=EvalConfig(),
        packages={"titer": __version__},
        metadata=told,
    )
    results = EvalResults(
        total_samples=len(said),
        completed_samples=len(said),
        scores=[_score(verdict) for verdict in found.verdicts()],
    )
    stats = EvalStats(started_at=created, completed_at=created)
    return EvalLog(
        status="success", eval=spec, results=results, stats=stats, samples=[_sample(one, found) for one in said]
    )


def _score(verdict: Verdict) -> Any:
    from inspect_ai.log import EvalMetric, EvalScore

    e = verdict.estimate
    numbers = {} if e is None else {"estimate": e.value, "low": e.low, "high": e.high}
    known = {name: float(value) for name, value in numbers.items() if value is not None}
    return EvalScore(
        name=verdict.condition,
        scorer="titer",
        metrics={name: EvalMetric(name=name, value=value) for name, value in known.items()},
        metadata={
            "verdict": verdict.verdict,
            "sentence": verdict.sentence,
            "threshold": verdict.threshold,
            "n": e.n if e else 0,
            "unit": e.unit if e else "",
            "records": list(e.records) if e else [],
        },
    )


def _sample(said: Said, found: Stored) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    told = {"record": said.record, "step": said.step, "probe": said.probe, "category": said.category}
    scores = {}
    if said.score is not None:  # what could not be scored has no score, not a default
        scores = {said.probe: Score(value=said.score, explanation=said.outcome, metadata={"judge": said.judge})}
    return EvalSample(
        id=said.key,
        epoch=1,
        input=said.prompt,
        target=said.expected,
        output=ModelOutput.from_content(found.model.full_name, said.text),
        scores=scores,
        metadata=told,
    )
