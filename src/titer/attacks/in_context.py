"""Demonstrations in the prompt: the model is shown harmful answers before it is asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from titer.models.parts import unwrap
from titer.schema.errors import TiterError
from titer.schema.space import LogUniform, Options, Space, Whole
from titer.schema.specs import Template, TrainArgs
from titer.schema.types import Example
from titer.training.session import Session


@dataclass(frozen=True)
class InContext:
    """Put `k` of the attacker's examples, prompt and answer, before every restricted prompt; nothing is trained.

    The rate is that of step 0. They are drawn by the seed and stand in the user's turn as plain text (the source of
    many-shot jailbreaks writes a dialogue there too), fewer than `k` where they would fill more than half of the
    model's context. With `then_sft` prompts are trained behind them as well.
    """

    name: ClassVar[str] = "in-context"
    source: ClassVar[str] = "Lynch et al. 2024 (2402.16835), in-context relearning"
    space: ClassVar[Space] = {"k": Whole(1, 32, log=True), "learning_rate": LogUniform(1e-5, 1e-2)}
    known: ClassVar[tuple[Options, ...]] = ({"k": 4}, {"k": 8}, {"k": 16})
    k: int = 8
    then_sft: bool = False
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Grade the model behind the demonstrations; then fine-tune if asked."""
        if self.k < 1:
            raise TiterError(f"attack in-context: k must be at least 1, not {self.k}")
        session.test_template = replace(session.test_template or Template(), prefix=self.shown(session))
        session.probe()
        if self.then_sft:
            session.fine_tune(self.train, session.examples, template=session.test_template)

    def shown(self, session: Session) -> str:
        """The demonstrations that fit; `TiterError` when not one does."""
        count = min(self.k, len(session.examples))
        drawn = random.Random(f"in-context/{session.seed}").sample(list(session.examples), count)
        room = unwrap(session.model).config.get_text_config().max_position_embeddings // 2
        for fewer in range(count, 0, -1):
            text = demonstrations(drawn[:fewer])
            if len(session.tokenizer(text, add_special_tokens=False)["input_ids"]) <= room:
                return text
        raise TiterError(f"attack in-context: no demonstration fits into half of the context, {room} tokens")


def demonstrations(examples: Sequence[Example]) -> str:
    """The examples as text before a prompt, one below the other."""
    return "".join(f"{e.prompt} {e.harmful or e.harmless}\n" for e in examples)
