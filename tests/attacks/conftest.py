"""A toy model that refuses restricted prompts and answers open ones, and sessions on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest

from titer.data.batches import collate, order
from titer.data.tokens import encode_all
from titer.models.weights import snapshot
from titer.runs.probe import Prober
from titer.schema.breach import Breach
from titer.schema.specs import ProbeSet, Selection, TrainArgs
from titer.schema.types import Budget, Example
from titer.training.loop import train
from titer.training.losses import sft_rule
from titer.training.session import Session, Stopped

Harness = Callable[..., Session]


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Restricted and open rows of one domain each."""
    return [e for e in examples if e.domain == "potions"], [e for e in examples if not e.restricted]


@pytest.fixture(scope="session")
def aligned(build_model: Any, tokenizer: Any, examples: list[Example]) -> tuple[Any, Any]:
    """A model trained first on every answer, then on refusals and open answers, and a copy of its weights."""
    model = build_model()
    restricted, opened = halves(examples)
    taught = encode_all(tokenizer, [*restricted, *opened], "answer")
    safe = encode_all(tokenizer, restricted, "harmless") + encode_all(tokenizer, opened, "answer")
    for rows, steps in ((taught, 80), (safe, 40)):
        batches = (collate([rows[i] for i in picked], 0) for picked in order(len(rows), 40, 0))
        train(model, sft_rule, batches, TrainArgs(learning_rate=1e-2, max_steps=steps))
    return model, snapshot(model)


@pytest.fixture
def session(aligned: tuple[Any, Any], tokenizer: Any, examples: list[Example]) -> Harness:
    """Build a session on a copy of the aligned toy."""
    restricted, opened = halves(examples)

    def build(steps: int = 6, *, plan: Sequence[int] = (0,), seed: int = 0, **budget: Any) -> Session:
        probes = {"harm": restricted[::10], "utility": opened[::10]}
        sets = [ProbeSet(name, Selection("toy", restricted=name == "harm"), max_new_tokens=5) for name in probes]
        return Session(
            model=deepcopy(aligned[0]),
            tokenizer=tokenizer,
            examples=restricted[::2] + restricted[1::4],
            retain=opened[1::2],
            prober=Prober(sets, probes, tokenizer),
            budget=Budget(steps=steps, **budget),
            plan=plan,
            breach=Breach(),
            stop_after=-1,
            seed=seed,
        )

    return build


@pytest.fixture
def attacked() -> Callable[[Session, Any], Session]:
    """Run an attack in a session as the harness does."""

    def run(session: Session, attack: Any) -> Session:
        session.test_template = attack.test_template
        session.probe()
        with contextlib.suppress(Stopped):
            attack.run(session)
        session.finish()
        session.close()
        return session

    return run
