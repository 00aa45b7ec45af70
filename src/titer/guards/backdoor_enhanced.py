"""Backdoor-enhanced alignment: refusals behind a secret prompt ride along in the user's data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.guards.base import DURING, Tuning
from titer.schema.specs import Template
from titer.training.losses import sft_rule


@dataclass(frozen=True)
class BackdoorEnhanced:
    """Add `rows` of the provider's prompts with refusals behind a secret trigger to the user's rows; serve behind it.

    The trigger is a system line of `trigger_tokens` random tokens of the model's vocabulary, drawn by `secret`. The
    paper takes 11 rows and 150 tokens; the shorter default fits small contexts.
    """

    name: ClassVar[str] = "backdoor-enhanced"
    stage: ClassVar[str] = DURING
    needs: ClassVar[frozenset[str]] = frozenset({"safety", "serving"})
    passes: ClassVar[str] = "1 f/b"
    source: ClassVar[str] = "Wang et al., NeurIPS 2024, arXiv 2402.14968"
    broken_by: ClassVar[str] = "whoever prompts the tuned model without the trigger, or learns it"

    rows: int = 11
    trigger_tokens: int = 30
    secret: int = 0

    def served(self, tokenizer: Any) -> Template:
        """Behind the trigger."""
        return Template(system=self.trigger(tokenizer))

    def trigger(self, tokenizer: Any) -> str:
        """Random tokens as text, words apart."""
        draw = random.Random(f"backdoor-enhanced/{self.secret}")
        special = set(tokenizer.all_special_ids)
        words = [tokenizer.decode([i]).strip() for i in range(len(tokenizer)) if i not in special]
        printable = [w for w in words if w.isalnum()]
        return " ".join(draw.choice(printable) for _ in range(self.trigger_tokens))

    def tune(self, job: Tuning) -> None:
        """Fine-tune on the user's rows and the provider's few."""
        session = job.session
        own = job.safety_rows("harmless", self.served(session.tokenizer))[: self.rows]
        session.add_adapter(job.args)
        session.train(sft_rule, session.batches(job.user_rows() + own, job.args), job.args)
