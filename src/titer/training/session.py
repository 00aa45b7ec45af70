"""The harness of one attack: it holds the model, meters every step, probes by plan, and ends at the budget.

The attack neither counts its own budget nor grades itself (the shape of foolbox's attacks): it only calls `train`,
or edits weights and calls `probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from titer.data.batches import collate, flatten, order
from titer.data.tokens import Row, encode_all
from titer.schema.breach import Breach
from titer.schema.errors import TiterError
from titer.schema.specs import Template, TrainArgs
from titer.schema.types import Batch, Budget, Completion, Example, Graded, Point, Spend, from_json
from titer.training.checkpoint import Checkpoint
from titer.training.loop import Ended, Rule, train
from titer.training.lora import with_lora, without_adapter
from titer.training.losses import sft_rule
from titer.training.meter import Meter

UNBOUNDED_STEPS = 1000  # an attack's length when its budget is not in steps and it does not say


class Stopped(Exception):
    """The session is over: budget spent, breach seen, or training diverged."""


Around = Callable[[Any, bool], AbstractContextManager[None]]


class Grader(Protocol):
    """Grades a model at a step: harm by the attacker's own wording and context, where he has them."""

    def __call__(
        self, model: Any, step: int, test_template: Template | None = None, around: Around | None = None
    ) -> Graded:
        """Scores per prompt and outcome counts by probe set, and the completions."""


@dataclass
class Session:
    """One attack on one model. `points` and `completions` are what comes out; `end` says how it ended.

    What an attack registers in `undo` is called by `close`, after the last probe: hooks and the like it put on the
    model. `around` is a context in which prompts are asked, told whether they are restricted. With `saved` a
    fine-tune that the attack begins with goes on from where it was killed, with the points it had; what comes after
    it begins anew.
    """

    model: Any
    tokenizer: Any
    examples: Sequence[Example]
    retain: Sequence[Example]
    prober: Grader
    budget: Budget
    plan: Sequence[int]
    breach: Breach
    stop_after: int
    seed: int
    test_template: Template | None = None
    around: Around | None = None
    meter: Meter = field(default_factory=Meter)
    step: int = 0
    end: str = "finished"
    points: list[Point] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    on_progress: Callable[[int], None] = lambda step: None
    undo: ExitStack = field(default_factory=ExitStack)
    saved: Checkpoint | None = None
    _losses: list[float] = field(default_factory=list)
    _past: dict[int, tuple[Point, list[Completion]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.saved is not None:
            self._past = _read_past(self.saved.kept() or {})
            self.saved.more = lambda: {"points": self.points, "completions": self.completions}

    @property
    def max_steps(self) -> int:
        """How many more optimiser steps an attack that runs to the end of its budget should plan for."""
        whole = self.budget.steps if self.budget.steps is not None else UNBOUNDED_STEPS
        return max(whole - self.step, 1)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return next(self.model.parameters()).device

    def encode(
        self, examples: Sequence[Example], args: TrainArgs, *, side: str = "answer", template: Template = Template()
    ) -> list[Row]:
        """Examples as token rows; `side` as in `titer.data.encode_all`."""
        return encode_all(self.tokenizer, examples, side, template, args.max_length)

    def batches(self, rows: Sequence[Row], args: TrainArgs, *, stream: int = 0) -> Iterator[Batch]:
        """Endless seeded batches of `rows`; different `stream` numbers give independent orders."""
        seed = self.seed * 1009 + stream
        lengths = [len(r.ids) for r in rows] if args.group_by_length else []
        for picked in order(len(rows), args.per_device_train_batch_size, seed, shuffle=args.shuffle, lengths=lengths):
            chosen = [rows[i] for i in picked]
            padded = not args.padding_free
            yield collate(chosen, self.tokenizer.pad_token_id, self.device) if padded else flatten(chosen, self.device)

    def fine_tune(
        self, args: TrainArgs, examples: Sequence[Example], *, rule: Rule = sft_rule, template: Template = Template()
    ) -> Ended:
        """Train by `rule` on the examples, each answered as given, through an adapter when `args.lora_r` is set."""
        self.add_adapter(args)
        items = self.batches(self.encode(examples, args, template=template), args)
        return self.train(rule, items, args, checkpoint=self.saved if self.step == 0 else None)

    def add_adapter(self, args: TrainArgs) -> None:
        """Put a fresh LoRA adapter on the model when `args.lora_r` is set; from then on only the adapter trains."""
        self.model = with_lora(self.model, args, seed=self.seed)

    def train(
        self, rule: Rule, items: Iterable[Any], args: TrainArgs, *, checkpoint: Checkpoint | None = None
    ) -> Ended:
        """Train by `rule` with probes at the plan's steps. Raises `Stopped` at the budget, a breach or divergence.

        `args.max_steps` 0 means as long as the budget lasts; the schedule then spans the budget's steps.
        """
        if args.padding_free and rule is not sft_rule:
            raise TiterError(
                "padding_free: supervised fine-tuning only, this attack needs its rows apart: leave it out"
            )
        args = replace(args, max_steps=args.max_steps or self.max_steps)
        offset = self.step

        ended = train(
            self.model,
            rule,
            items,
            args,
            meter=self.meter,
            budget=self.budget,
            on_step=lambda step, logs: self.stepped(offset + step, logs),
            seed=self.seed + offset,
            checkpoint=checkpoint,
        )
        if ended.reason == "diverged":
            self.end = "diverged"
        if ended.reason != "finished" or self.over:
            raise Stopped(ended.reason)
        return ended

    def stepped(self, step: int, logs: Mapping[str, float]) -> bool:
        """Note that training made its step number `step`, probe if the plan says so; whether the session is over."""
        self.step = step
        self._losses.append(logs.get("loss", float("nan")))
        self.on_progress(self.step)
        if self.step in self.plan:
            self.probe(reward=logs.get("reward"))
        return self.over

    def edited(self) -> None:
        """Count an edit of the weights as one step and probe what it did; step 0 stays the model as released.

        Raises `Stopped` as `train` does.
        """
        self.check_budget()
        self.meter.spend += Spend(steps=1)
        self.step += 1
        self.probe()
        if self.over:
            raise Stopped("stopped")

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Charge what the attack computes itself, outside `train`. Raises `Stopped` when the budget is used up."""
        self.check_budget()
        with self.meter.running(self.model):
            yield
        self.check_budget()

    def check_budget(self) -> None:
        """Raise `Stopped` when the budget is used up."""
        unit = self.budget.reached(self.meter.spend)
        if unit:
            raise Stopped(f"budget:{unit}")

    def probe(self, *, reward: float | None = None) -> Point:
        """Grade the model as it is now and add the point to the curve (replacing one at the same step)."""
        losses, self._losses = self._losses, []
        if self.step in self._past:
            point, completions = self._past.pop(self.step)
        else:
            scores, outcomes, completions = self.prober(self.model, self.step, self.test_template, self.around)
            loss = sum(losses) / len(losses) if losses else None
            point = Point(self.step, self.meter.spend, scores, outcomes, loss, reward)
        if self.points and self.points[-1].step == self.step:
            self.points.pop()
            self.completions = [c for c in self.completions if c.step != self.step]
        self.points.append(point)
        self.completions += completions
        return point

    def finish(self) -> None:
        """Grade the end state if the plan did not."""
        if self.points[-1].step != self.step and self.end != "diverged":
            self.probe()
        if self.over:
            self.end = "breached"

    def close(self) -> None:
        """Take everything off the model again: what the attack registered in `undo`, then the adapter."""
        self.undo.close()
        self.model = without_adapter(self.model)

    def _breached(self, point: Point) -> bool:
        floor = self.breach.floor(self.points[0].mean("utility"))
        return self.breach.kind(point, floor) == "breach"

    @property
    def over(self) -> bool:
        """Whether a breach was seen and the further probes asked for have been made."""
        breached = next((i for i, p in enumerate(self.points) if self._breached(p)), None)
        return breached is not None and 0 <= self.stop_after <= len(self.points) - 1 - breached


def _read_past(kept: Mapping[str, Any]) -> dict[int, tuple[Point, list[Completion]]]:
    """Points with their completions by step, from a checkpoint."""
    said = [from_json(Completion, row) for row in kept.get("completions", ())]
    points = [from_json(Point, row) for row in kept.get("points", ())]
    return {p.step: (p, [c for c in said if c.step == p.step]) for p in points}
