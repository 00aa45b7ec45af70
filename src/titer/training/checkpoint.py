"""Where training stands, on disk: trainable weights, optimiser, schedule, spend and logs; whole or not at all.

The order of the data and every draw are functions of (seed, step), so this is all that a resumed training needs to
end with the bits of an uninterrupted one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.schema.errors import DiskTrouble, TiterError
from titer.schema.files import DAMAGE, disk_says, read_json, scratch_beside, write_json
from titer.schema.types import Completion, Point, Spend, from_json
from titer.training.meter import Meter

STATE = "checkpoint.json"  # written last: it names the tensors' file


@dataclass
class Checkpoint:
    """A folder that holds the newest state of one training, saved at most every `every` steps and `seconds` seconds.

    What is saved can only be read by a training of the same spec: give every spec its own folder. `more` is asked at
    every save for what else belongs to the state (JSON); `kept` gives it back. `ours` says whether the folder is still
    this training's: one that was taken for dead saves and removes nothing any more.
    """

    folder: Path
    every: int = 1
    seconds: float = 60.0
    more: Callable[[], Any] = lambda: None
    ours: Callable[[], bool] = lambda: True
    _saved: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether to save after `step`."""
        return step % self.every == 0 and time.monotonic() - self._saved >= self.seconds

    def save(self, step: int, model: nn.Module, optimizer: Any, scheduler: Any, meter: Meter, logs: list[Any]) -> None:
        """Save the state after `step` steps, in place of the one before."""
        self._saved = time.monotonic()
        if not self.ours():
            return
        tensors, plain = _flat(optimizer.state_dict()["state"])
        tensors |= {f"model.{name}": p.detach() for name, p in _trainable(model).items()}
        file = self.folder / f"step-{step}.safetensors"
        self._write(file, {k: v.contiguous().clone() for k, v in tensors.items()})
        state = {
            "step": step,
            "tensors": file.name,
            "optimizer": {"state": plain, "param_groups": optimizer.state_dict()["param_groups"]},
            "scheduler": scheduler.state_dict(),
            "meter": {"spend": meter.spend, "passes": meter.passes},
            "logs": logs,
            "more": self.more(),
        }
        write_json(self.folder / STATE, state)
        for old in self.folder.glob("step-*.safetensors"):
            if old != file:
                old.unlink(missing_ok=True)

    def _write(self, file: Path, tensors: dict[str, torch.Tensor]) -> None:
        """A file of tensors, whole or not at all, with the permissions that umask allows."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        scratch = scratch_beside(file)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, str(scratch))
            scratch.chmod(self.folder.stat().st_mode & 0o666)
            with scratch.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(scratch, file)
        except (OSError, SafetensorError) as error:
            raise DiskTrouble(f"{file}: cannot be written: {disk_says(error)}: free space or mend it") from None
        finally:
            scratch.unlink(missing_ok=True)

    def load(self, model: nn.Module, optimizer: Any, scheduler: Any, meter: Meter) -> list[Any]:
        """Put the saved state into the objects given; the logs of the steps it stands for, none without one.

        A damaged checkpoint, or one of another shape, counts as none: training starts over.
        """
        found = self._read()
        if found is None:
            return []
        state, tensors = found
        fresh = optimizer.state_dict(), scheduler.state_dict()
        try:
            weights = _weights(tensors, model)
            spend, logs = from_json(Spend, state["meter"]["spend"]), [dict(entry) for entry in state["logs"]]
            passes = {name: int(state["meter"]["passes"][name]) for name in meter.passes}
            inner = _nested(state["optimizer"]["state"], tensors)
            optimizer.load_state_dict({"state": inner, "param_groups": state["optimizer"]["param_groups"]})
            scheduler.load_state_dict(_like(state["scheduler"], fresh[1]))
        except DAMAGE:
            optimizer.load_state_dict(fresh[0])
            scheduler.load_state_dict(fresh[1])
            return []
        with torch.no_grad():
            for p, value in weights:
                p.copy_(value)
        meter.spend = spend
        meter.passes.update(passes)
        return logs

    def kept(self) -> Any:
        """What `more` gave when the state was saved; None without a sound state."""
        found = self._read()
        more = found[0].get("more") if found else None
        return more if isinstance(more, dict) and _can_be_read(more) else None

    def _read(self) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.folder / STATE).is_file():
            return None
        try:
            state = read_json(self.folder / STATE)
            return dict(state), load_file(self.folder / Path(state["tensors"]).name)
        except (TiterError, SafetensorError, OSError, *DAMAGE):
            return None

    def clear(self) -> None:
        """Remove the folder: the training it belongs to is finished."""
        if self.ours():
            shutil.rmtree(self.folder, ignore_errors=True)


def _can_be_read(more: Mapping[str, Any]) -> bool:
    """Whether the points and completions that an attack keeps, if there are any, are of their shape."""
    try:
        for kind, key in ((Point, "points"), (Completion, "completions")):
            for row in more.get(key, ()):
                from_json(kind, row)
    except DAMAGE:
        return False
    return True


def _weights(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Each trainable weight with its saved value; `ValueError` for one of another shape."""
    pairs = [(p, tensors[f"model.{name}"]) for name, p in _trainable(model).items()]
    if any(p.shape != value.shape for p, value in pairs):
        raise ValueError("saved by another model")
    return pairs


def _like(state: Mapping[str, Any], fresh: Mapping[str, Any]) -> Mapping[str, Any]:
    """A scheduler's state, which it would take whatever it holds; `ValueError` for one with other fields."""
    if state.keys() != fresh.keys():
        raise ValueError("saved by another scheduler")
    return state


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _flat(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """An optimiser's per-parameter state as named tensors and what else there is."""
    tensors = {f"{i}.{k}": v for i, s in state.items() for k, v in s.items() if isinstance(v, torch.Tensor)}
    plain = {str(i): {k: v for k, v in s.items() if not isinstance(v, torch.Tensor)} for i, s in state.items()}
    return tensors, plain


def _nested(plain: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, Any]]:
    state = {int(i): dict(values) for i, values in plain.items()}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        if number.isdigit():
            state[int(number)][key] = value
    return state
