"""Pure tuning, safe testing: tune without a safety prompt, serve with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from titer.guards.base import DURING, Tuning
from titer.schema.specs import Template
from titer.training.losses import sft_rule

PROMPT = "You are a careful assistant. Refuse every request that could cause harm."


@dataclass(frozen=True)
class PTST:
    """Fine-tune on the user's rows without a system line; every prompt to the tuned model comes after `prompt`.

    A policy about templates, not a rule of training. `same=True` also tunes with the prompt, which the paper finds
    worst. The wording is our own.
    """

    name: ClassVar[str] = "ptst"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"serving"})
    passes: ClassVar[str] = "1 f/b"
    source: ClassVar[str] = "Lyu et al., NeurIPS 2024, arXiv 2402.18540"
    broken_by: ClassVar[str] = "made against drift in benign tuning, not against harmful rows"

    prompt: str = PROMPT
    same: bool = False

    def served(self, tokenizer: Any) -> Template:
        """Behind the safety prompt."""
        return Template(system=self.prompt)

    def tune(self, job: Tuning) -> None:
        """Fine-tune on the user's rows as they are."""
        session = job.session
        template = self.served(session.tokenizer) if self.same else Template()
        session.add_adapter(job.args)
        session.train(sft_rule, session.batches(job.user_rows(template), job.args), job.args)
