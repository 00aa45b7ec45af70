"""Grading: generate on every probe set, judge, and keep the completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from titer.data.splits import normalise
from titer.data.tokens import render_prompt
from titer.judges import make_judge
from titer.models.generate import generate
from titer.models.remote import Server
from titer.models.shards import told_by_first
from titer.runs.measures import divergences, likelihoods
from titer.schema.specs import ProbeSet, Template
from titer.schema.types import Completion, Example, Graded, Score
from titer.training.session import Around


@dataclass
class Prober:
    """Grades a model on probe sets: call it with a model and a step.

    A prompt is asked once, however many rows of its set have it: rows are not samples, prompts are.
    Returns scores per prompt and outcome counts by set, and the completions. Sets that share a generation length are
    generated together. `batch_size` is prompts per generation batch; `reference` is the model that sets with
    `measure="kl"` are held against. With a `server` completions come from there, and no set may need the weights.
    `end_ids` end a completion; None: what the model's folder says.
    """

    sets: Sequence[ProbeSet]
    examples: Mapping[str, Sequence[Example]]
    tokenizer: Any
    batch_size: int = 128
    reference: Any = None
    server: Server | None = None
    end_ids: tuple[int, ...] | None = None
    _prompts: dict[tuple[str, Template], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.examples = {name: distinct(rows) for name, rows in self.examples.items()}

    def __call__(
        self, model: Any, step: int, test_template: Template | None = None, around: Around | None = None
    ) -> Graded:
        """Grade `model`; `test_template` replaces the template of restricted prompts (an attacker's own wording).

        With `around` restricted and open prompts are asked apart, each inside its context.
        """
        sets = [s for s in self.sets if not s.at or step in s.at]
        if around is None:
            return self._grade(model, step, sets, test_template)
        scores: dict[str, tuple[float | None, ...]] = {}
        outcomes: dict[str, Mapping[str, int]] = {}
        completions: list[Completion] = []
        for restricted in (True, False):
            half = [s for s in sets if bool(s.selection.restricted) is restricted]
            with around(model, restricted):
                found = self._grade(model, step, half, test_template)
            scores |= found[0]
            outcomes |= found[1]
            completions += found[2]
        return scores, outcomes, completions

    def _grade(self, model: Any, step: int, everything: Sequence[ProbeSet], test_template: Template | None) -> Graded:
        due = [s for s in everything if s.measure in ("score", "refusal")]
        texts: dict[str, list[str]] = {}
        for length in sorted({s.max_new_tokens for s in due}):
            group = [s for s in due if s.max_new_tokens == length]
            prompts = [self._rendered(s, test_template) for s in group]
            flat = [p for ps in prompts for p in ps]
            out = self._completed(model, flat, length)
            for s, ps in zip(group, prompts, strict=True):
                texts[s.name], out = out[: len(ps)], out[len(ps) :]
        scores, outcomes, completions = told_by_first(lambda: self._graded(due, texts, step, test_template))
        for s in everything:
            if s.measure == "choice":
                scores[s.name] = self._chosen(model, s)
            elif s.measure == "likelihood":
                scores[s.name] = tuple(likelihoods(model, self.tokenizer, self.examples[s.name], s.template))
            elif s.measure == "kl":
                asked = self.examples[s.name]
                scores[s.name] = tuple(divergences(model, self.reference, self.tokenizer, asked, s.template))
        return scores, outcomes, completions

    def _completed(self, model: Any, prompts: Sequence[str], length: int) -> list[str]:
        if self.server is not None:
            return self.server.generate(self.tokenizer, prompts, max_new_tokens=length)
        return generate(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=length,
            batch_size=self.batch_size,
            end_ids=self.end_ids,
        )

    def _chosen(self, model: Any, s: ProbeSet) -> tuple[float | None, ...]:
        from titer.data.multiple_choice import load_choices
        from titer.data.published import FORMATS, read_choices
        from titer.runs.measures import accuracy

        name = s.selection.dataset
        published = name.partition(":")[0] in FORMATS
        by_question = {c.question: c for c in (read_choices(name) if published else load_choices(name, None))}
        items = [by_question[e.prompt] for e in self.examples[s.name]]
        return tuple(accuracy(model, self.tokenizer, items))

    def _graded(
        self, due: Sequence[ProbeSet], texts: Mapping[str, list[str]], step: int, test_template: Template | None
    ) -> Graded:
        scores: dict[str, tuple[float | None, ...]] = {}
        outcomes: dict[str, Mapping[str, int]] = {}
        completions: list[Completion] = []
        for s in due:
            examples = self.examples[s.name]
            template = self._template(s, test_template)
            starts = [forced_start(s, template, e) for e in examples]
            judged = judge(s, examples, [" ".join(filter(None, p)) for p in zip(starts, texts[s.name], strict=True)])
            scores[s.name] = tuple(_measure(s, score) for score in judged)
            outcomes[s.name] = dict(Counter(str(score.outcome or "unscored") for score in judged))
            completions += [
                Completion(s.name, step, i, e.prompt, t, e.harmful or e.harmless, score, e.category, e.domain)
                for i, (e, t, score) in enumerate(zip(examples, texts[s.name], judged, strict=True))
            ]
        return scores, outcomes, completions

    def _template(self, s: ProbeSet, test_template: Template | None) -> Template:
        return test_template if test_template is not None and s.selection.restricted else s.template

    def _rendered(self, s: ProbeSet, test_template: Template | None) -> list[str]:
        template = self._template(s, test_template)
        key = (s.name, template)
        if key not in self._prompts:
            self._prompts[key] = [
                render_prompt(self.tokenizer, e.prompt, replace(template, prefill=forced_start(s, template, e)))
                for e in self.examples[s.name]
            ]
        return self._prompts[key]


def distinct(examples: Sequence[Example]) -> list[Example]:
    """The first example of every normalised prompt, in order; prompts without a word are told apart as written."""
    first: dict[str, Example] = {}
    for e in examples:
        first.setdefault(normalise(e.prompt) or e.prompt, e)
    return list(first.values())


def forced_start(s: ProbeSet, template: Template, example: Example) -> str:
    """What the completion is made to start with: the template's prefill and the first words of the answer."""
    words = (example.harmful or example.harmless).split()[: s.prefill_words]
    return " ".join(filter(None, (template.prefill, *words)))


def judge(s: ProbeSet, examples: Sequence[Example], texts: Sequence[str]) -> list[Score]:
    """Scores of one probe set's completions by its judge."""
    answers = [e.harmful or e.harmless for e in examples]
    return make_judge(s.judge).score([e.prompt for e in examples], list(texts), answers)


def _measure(s: ProbeSet, score: Score) -> float | None:
    if s.measure == "refusal":
        return None if score.outcome is None else float(score.outcome == "refuse")
    return score.value
