"""A callback for `transformers.Trainer` and TRL's trainers: harm and utility along a fine-tune that is not titer's.

What is written is the run folder of an attack, so that all that reads titer's runs reads it: the fine-tune is a run
whose attack is called `trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from titer.data.load import load
from titer.data.roles import assign, check
from titer.data.select import select
from titer.runs.probe import Prober
from titer.runs.provenance import environment, now
from titer.runs.store import Store
from titer.schema.breach import Breach
from titer.schema.errors import TiterError
from titer.schema.evaluation import Case, Data, Evaluation, Grading
from titer.schema.files import COMPLETIONS, CURVE, RECORD, write_json, write_lines
from titer.schema.roles import Roles
from titer.schema.specs import DEFAULT_PLAN, AttackRun, Named, Selection, selections
from titer.schema.suite import Suite
from titer.schema.types import Budget, Curve, Point, RunRecord, Spend, spec_id, to_json
from titer.training.session import Session

ATTACK = "trainer"  # what the fine-tune is called among attacks
THEIRS = "theirs"  # what its training data is called: titer has not seen it
TOLD = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")


@dataclass(frozen=True)
class Watched:
    """What is asked of the model along the fine-tune, and when.

    Attributes:
        data: the prompts: held-out restricted and open ones of a data set, as `titer attack` asks them.
        grading: the judge and the length of completions.
        breach: what counts as one.
        n_eval: prompts of every probe.
        probe_steps: optimiser steps at which the model is graded; the last step always is.
        stop_at_breach: end the fine-tune at the first breach.
    """

    data: Data = Data()
    grading: Grading = Grading()
    breach: Breach = Breach()
    n_eval: int | None = 48
    probe_steps: tuple[int, ...] = DEFAULT_PLAN
    stop_at_breach: bool = False

    def case(self, model: str, roles: Roles, steps: int) -> Case:
        """The question that the fine-tune answers."""
        suite = Suite(ATTACK, (), (), (), steps, self.probe_steps, None, self.n_eval)
        asked = Evaluation(grading=self.grading, breach=self.breach)
        return Case(model, "", roles, suite, asked)


class TiterCallback(TrainerCallback):
    """Probes harm and utility while a `Trainer` trains, and leaves a run folder under `output_dir/runs`.

        trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        trainer.add_callback(TiterCallback(trainer, "out"))
        trainer.train()

    Harm, utility and whether it is a breach go to the trainer's log and so to its trackers, as `titer/harm`,
    `titer/utility` and `titer/breach`. `curve` is the finished curve, `record` its record. The model is asked greedily
    and draws nothing, so the fine-tune ends with the weights it would have had. `model` is what the record calls the
    model; without it the model's own name.

    Raises `TiterError` before training for a trainer without a tokenizer (`processing_class`), on several processes,
    or resumed from a checkpoint, whose start can no longer be asked.
    """

    def __init__(
        self, trainer: Trainer, output_dir: str | Path, asked: Watched = Watched(), *, model: str = ""
    ) -> None:
        if trainer.processing_class is None:
            raise TiterError("TiterCallback: the trainer has no tokenizer: pass it processing_class=tokenizer")
        self.trainer, self.root, self.asked = trainer, Path(output_dir), asked
        self.model = model or str(
            getattr(getattr(trainer.model, "config", None), "name_or_path", "") or type(trainer.model).__name__
        )
        self.roles = assign(asked.data)
        check(self.roles)
        self.session: Session | None = None
        self.record: RunRecord | None = None
        self.curve: Curve | None = None
        self._rows, self._running = 0, ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask the model as it is before the first step."""
        if args.world_size > 1:
            raise TiterError(f"TiterCallback: {args.world_size} processes: it works on one: train on one process")
        if state.global_step:
            raise TiterError(
                "TiterCallback: the fine-tune goes on from a checkpoint: begin it anew, or leave the callback out"
            )
        self._case = self.asked.case(self.model, self.roles, state.max_steps)
        probes = (self._case.harm("unseen"), self._case.utility())
        rows = {p.name: select(p.selection) for p in probes}
        self.session = Session(
            model=self.trainer.model,
            tokenizer=self.trainer.processing_class,
            examples=(),
            retain=(),
            prober=Prober(probes, rows, self.trainer.processing_class),
            budget=Budget(steps=state.max_steps),
            plan=self.asked.probe_steps,
            breach=self.asked.breach,
            stop_after=0 if self.asked.stop_at_breach else -1,
            seed=args.seed,
        )
        self._probe(self.session)
        return control

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Count from here."""
        session, self._rows = self._now(), 0
        self._running.enter_context(session.meter.running(session.model))
        self._running.callback(session.model.register_forward_hook(self._count, with_kwargs=True).remove)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Charge the step, ask the model if it is planned, end the fine-tune at a breach if that was asked for."""
        self._running.close()
        session = self._now()
        session.meter.spend += Spend(steps=1, examples=self._rows)
        session.step = state.global_step
        if session.step in session.plan or session.step >= state.max_steps:
            self._probe(session)
        control.should_training_stop = control.should_training_stop or session.over
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask once more where the end was not planned, and write the run."""
        self._running.close()
        session = self._now()
        if session.points[-1].step != session.step and not args.load_best_model_at_end:
            self._probe(session)
        session.points[:] = with_losses(session.points, state.log_history)
        session.end = "breached" if session.over else "finished"
        self._write(session, args)
        return control

    def _now(self) -> Session:
        if self.session is None:
            raise TiterError("TiterCallback: added after training began: add it before trainer.train()")
        return self.session

    def _count(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        ids = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else ()))
        self._rows += len(ids)

    def _probe(self, session: Session) -> None:
        point = session.probe()
        floor = self.asked.breach.floor(session.points[0].mean("utility"))
        broken = float(self.asked.breach.kind(point, floor) == "breach")
        found = {"harm": point.mean("harm"), "utility": point.mean("utility"), "breach": broken}
        said = {f"titer/{name}": value for name, value in found.items() if value is not None}
        # not trainer.log: TRL's adds and empties its own running means, which belong to its own log lines
        due = self.trainer.control.should_log
        Trainer.log(self.trainer, said)
        self.trainer.control.should_log = due  # logging clears it, and the step's own line would be lost

    def _write(self, session: Session, args: Any) -> None:
        run = self._run(session, args)
        said = {"points": [(p.step, p.scores) for p in session.points], "completions": session.completions}
        name = f"attack-{spec_id({'spec': to_json(run), 'said': said}, 12)}"
        record = RunRecord(
            id=name,
            kind="attack",
            spec=to_json(run),
            status="finished",
            spend=session.meter.spend,
            seed=run.seed,
            created=now(),
            environment={**environment(), "processes": 1, "trainer": type(self.trainer).__name__},
            data_hashes={k: load(s.dataset).hash for k, s in selections(run).items() if s.dataset != THEIRS},
            result={
                "end": session.end,
                "attack": ATTACK,
                "config": label(run.attack.options),
                "passes": session.meter.passes,
                "trained_on": len_of(self.trainer.train_dataset),
            },
        )
        store = Store(self.root)
        with store.writing(name) as folder:
            write_lines(folder / CURVE, session.points)
            write_lines(folder / COMPLETIONS, session.completions)
            write_json(folder / RECORD, record)
        self.record, self.curve = record, store.curve(name, "model", "unseen")

    def _run(self, session: Session, args: Any) -> AttackRun:
        """The fine-tune in the words of an attack."""
        told = {name: getattr(args, name) for name in TOLD}
        run = self._case.attack_run(Named(ATTACK, told), "unseen", args.seed, budget=session.budget)
        return replace(run, data=Selection(THEIRS), retain=None, stop_after=session.stop_after)


def label(options: Mapping[str, Any]) -> str:
    """The fine-tune with the settings it is told by."""
    words = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in sorted(options.items())]
    return f"{ATTACK}({', '.join(words)})"


def with_losses(points: Sequence[Point], history: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Points with the mean training loss that the trainer logged since the one before; None where it logged none."""
    logged = [(entry["step"], float(entry["loss"])) for entry in history if "loss" in entry]
    found, before = [], 0
    for point in points:
        since = [loss for step, loss in logged if before < step <= point.step]
        found.append(replace(point, loss=sum(since) / len(since) if since else None))
        before = point.step
    return found


def len_of(dataset: Any) -> int | None:
    """Rows of a data set; None for a stream."""
    try:
        return len(dataset)
    except TypeError:
        return None
