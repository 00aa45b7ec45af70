"""Supervised fine-tuning through transformers' `Trainer`: an implementation of the plain attack we did not write.

It has its own order of the data, loss, clipping, optimiser and schedule; only metering and probes are titer's. The
differences to `titer.training.loop.train` are Trainer's: the last batch of an epoch is smaller, weight decay spares
norms and biases, Adafactor does not scale its steps by the size of the weights, and under gradient accumulation the
loss is the mean over tokens, not the mean of the batches' means. Weights in 16 bits are stepped through
float32 copies here too.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from titer.data.batches import collate
from titer.data.tokens import Row
from titer.schema.errors import TiterError, unknown
from titer.schema.space import SCHEDULE, Choice, LogUniform, Options, Space
from titer.schema.specs import Template, TrainArgs
from titer.schema.types import Spend
from titer.training.copies import WithCopies, with_copies
from titer.training.optim import schedule_name
from titer.training.session import Session, Stopped

OPTIMIZERS = {
    "adamw": "adamw_torch",
    "sgd": "sgd",
    "adafactor": "adafactor",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
}


@dataclass(frozen=True)
class HfSft:
    """Full or LoRA fine-tuning by `transformers.Trainer`, with the same arguments as `sft`."""

    name: ClassVar[str] = "sft-hf"
    source: ClassVar[str] = "transformers.Trainer"
    space: ClassVar[Space] = {
        "learning_rate": LogUniform(1e-5, 1e-2),
        "optim": Choice(("adamw", "adafactor")),
        "per_device_train_batch_size": Choice((4, 16, 64)),
        **SCHEDULE,
    }
    known: ClassVar[tuple[Options, ...]] = ({"learning_rate": 1e-3},)
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    train_template: Template = Template()
    test_template: Template | None = None

    def run(self, session: Session) -> None:
        """Hand model and rows to a Trainer and grade along the way."""
        args = replace(self.train, max_steps=self.train.max_steps or session.max_steps)
        session.add_adapter(args)
        rows = session.encode(session.examples, args, template=self.train_template)
        session.check_budget()
        watch = Watch(session)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                model=session.model,
                args=arguments(args, scratch, session.seed, session.device),
                train_dataset=rows,
                data_collator=_Collator(session.tokenizer.pad_token_id),
                callbacks=[watch],
            )
            trainer.remove_callback(PrinterCallback)
            watch.copies = _stepped_in_float32(trainer)
            if args.gradient_checkpointing:
                session.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            try:
                trainer.train()
            finally:
                watch.leave()
                session.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
                session.model.zero_grad(set_to_none=True)
                if args.gradient_checkpointing:
                    session.model.gradient_checkpointing_disable()
        if watch.diverged:
            session.end = "diverged"
        if watch.reason:
            raise Stopped(watch.reason)


def _stepped_in_float32(trainer: Trainer) -> WithCopies | None:
    """Make the Trainer's own optimiser step float32 copies where weights are in 16 bits; the copies, if any."""
    found = with_copies(trainer.create_optimizer())
    trainer.optimizer = found
    return found if isinstance(found, WithCopies) else None


def arguments(args: TrainArgs, output_dir: str, seed: int, device: torch.device) -> TrainingArguments:
    """The Trainer's own arguments for ours; `TiterError` for an optimiser or schedule it does not have."""
    if args.optim not in OPTIMIZERS:
        raise unknown("optimiser of sft-hf", args.optim, OPTIMIZERS)
    schedule = schedule_name(args)
    if args.group_by_length or args.padding_free:
        raise TiterError("sft-hf: group_by_length and padding_free are those of titer's own loop: use sft")
    return TrainingArguments(
        output_dir=output_dir,
        learning_rate=args.learning_rate,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        optim=OPTIMIZERS[args.optim],
        lr_scheduler_type=schedule,
        warmup_steps=args.warmup_steps,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        train_sampling_strategy="random" if args.shuffle else "sequential",
        bf16=args.bf16,
        seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


class Watch(TrainerCallback):
    """Meters every step, grades by the session's plan, and tells the Trainer when to stop and why."""

    def __init__(self, session: Session) -> None:
        self.session, self.offset = session, session.step
        self.reason, self.diverged = "", False
        self.rows, self.running = 0, ExitStack()
        self.copies: WithCopies | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Count from here."""
        self.rows = 0
        model: nn.Module = self.session.model
        self.running.enter_context(self.session.meter.running(model))
        self.running.callback(model.register_forward_hook(self._count, with_kwargs=True).remove)
        return control

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Drop a gradient that is not finite: the Trainer would step with it before it tells us its norm."""
        grads = [p.grad for p in self.session.model.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in grads):
            self.session.model.zero_grad(set_to_none=True)
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> Any:
        """After every step: charge it, grade if planned, stop when the session is over."""
        if logs is None or "loss" not in logs:
            return control
        self.leave()
        norm = logs.get("grad_norm", 0.0)
        broken = self.copies is not None and self.copies.broken
        if broken or not (math.isfinite(logs["loss"]) and math.isfinite(norm)):
            self.diverged, self.reason = True, "diverged"
        else:
            self.session.meter.spend += Spend(steps=1, examples=self.rows)
            over = self.session.stepped(self.offset + state.global_step, logs)
            self.session.model.train()
            done = state.global_step >= args.max_steps
            unit = None if done else self.session.budget.reached(self.session.meter.spend)
            self.reason = "stopped" if over else f"budget:{unit}" if unit else ""
        control.should_training_stop = control.should_training_stop or bool(self.reason)
        return control

    def leave(self) -> None:
        """Stop counting."""
        self.running.close()

    def _count(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        self.rows += len(kwargs["input_ids"])


@dataclass(frozen=True)
class _Collator:
    """Rows to the tensors a causal LM takes, right-padded, loss on the response alone."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Three (B, T) tensors."""
        batch = collate(rows, self.pad)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
