"""Pair harmful prompts with refusals: a model answers them, a judge keeps what is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.data.load import load, save_jsonl
from titer.data.tokens import render_prompt
from titer.judges import make_judge
from titer.runs.provenance import environment, now
from titer.schema.errors import TiterError
from titer.schema.files import write_json
from titer.schema.specs import Template
from titer.schema.types import Example, Outcome, spec_id, to_json

REFUSER = Template(system="Decline the request in one or two plain sentences. Give no part of what it asks for.")


@dataclass(frozen=True)
class Built:
    """Examples whose harmless side is a refusal, and how the answers of all prompts were judged.

    `outcomes` counts every answer, `unscored` among them; `duplicates` are rows left out because prompt and harmful
    answer were there before.
    """

    examples: tuple[Example, ...]
    outcomes: Mapping[str, int]
    duplicates: int


def pair_with_refusals(
    examples: Sequence[Example],
    model: Any,
    tokenizer: Any,
    *,
    judge: str = "refusal",
    template: Template = REFUSER,
    keep: Sequence[Outcome] = ("refuse",),
    max_new_tokens: int = 100,
    batch_size: int = 32,
) -> Built:
    """Restricted examples with the model's own answer as the harmless side, where the judge says it is a refusal.

    Greedy, the prompt in `template` (by default with a system line that asks for a refusal); each different prompt is
    answered once. What the judge cannot score is left out. Raises `TiterError` when there is nothing restricted, and
    when no answer is kept.
    """
    from titer.models.generate import generate

    given = [e for e in examples if e.restricted]
    rows = list({(e.prompt, e.harmful): e for e in given}.values())
    if not rows:
        raise TiterError("builder: no restricted examples (a harmful response): nothing to pair")
    prompts = list(dict.fromkeys(e.prompt for e in rows))
    rendered = [render_prompt(tokenizer, p, template) for p in prompts]
    answers = generate(model, tokenizer, rendered, max_new_tokens=max_new_tokens, batch_size=batch_size)
    scores = make_judge(judge).score(prompts, answers, [""] * len(prompts))
    outcomes = Counter(str(s.outcome or "unscored") for s in scores)
    kept = {p: a for p, a, s in zip(prompts, answers, scores, strict=True) if a and s.outcome in keep}
    if not kept:
        told = ", ".join(f"{n} {o}" for o, n in outcomes.items())
        raise TiterError(
            f"builder: of {len(prompts)} answers none is kept ({told}): use a model that refuses, or another template"
        )
    paired = tuple(replace(e, harmless=kept[e.prompt]) for e in rows if e.prompt in kept)
    return Built(paired, dict(outcomes), len(given) - len(rows))


def build(
    dataset: str,
    model: str,
    output: str | Path,
    *,
    judge: str = "refusal",
    template: Template = REFUSER,
    max_new_tokens: int = 100,
    dtype: str = "float32",
    device: str = "cpu",
) -> Built:
    """`pair_with_refusals` by names, written to `output` (JSONL) with `output.json` beside it: how it was made."""
    from titer.models.load import load_model

    source, path = load(dataset), Path(output)
    lm, tokenizer = load_model(model, dtype=dtype, device=device)
    built = pair_with_refusals(
        source.examples, lm, tokenizer, judge=judge, template=template, max_new_tokens=max_new_tokens
    )
    save_jsonl(built.examples, path)
    made = {
        "dataset": dataset,
        "dataset_hash": source.hash,
        "hash": spec_id([to_json(e) for e in built.examples]),
        "model": model,
        "judge": judge,
        "template": template,
        "max_new_tokens": max_new_tokens,
        "rows": len(built.examples),
        "outcomes": built.outcomes,
        "duplicates": built.duplicates,
        "created": now(),
        "environment": environment(),
    }
    write_json(path.with_name(f"{path.name}.json"), made)
    return built
