"""Where training stands, on disk: trainable weights, optimiser, schedule, spend and logs; whole or not at all.

The order of the data and every draw are functions of (seed, step), so this is all that a resumed training needs to
end with the bits of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titer.schema.errors import TiterError
from titer.schema.files import read_json, write_json
from titer.schema.types import Spend, from_json
from titer.training.meter import Meter

STATE = "checkpoint.json"  # written last: it names the tensors' file


@dataclass
class Checkpoint:
    """A folder that holds the newest state of one training, saved at most every `every` steps and `seconds` seconds.

    What is saved can only be read by a training of the same spec: give every spec its own folder. `more` is asked at
    every save for what else belongs to the state (JSON); `kept` gives it back.
    """

    folder: Path
    every: int = 1
    seconds: float = 60.0
    more: Callable[[], Any] = lambda: None
    _saved: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether to save after `step`."""
        return step % self.every == 0 and time.monotonic() - self._saved >= self.seconds

    def save(self, step: int, model: nn.Module, optimizer: Any, scheduler: Any, meter: Meter, logs: list[Any]) -> None:
        """Save the state after `step` steps, in place of the one before."""
        from safetensors.torch import save_file

        tensors, plain = _flat(optimizer.state_dict()["state"])
        tensors |= {f"model.{name}": p.detach() for name, p in _trainable(model).items()}
        file = self.folder / f"step-{step}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, str(file))
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
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
        self._saved = time.monotonic()

    def load(self, model: nn.Module, optimizer: Any, scheduler: Any, meter: Meter) -> list[Any]:
        """Put the saved state into the objects given; the logs of the steps it stands for, none without one.

        A damaged checkpoint counts as none: training starts over.
        """
        found = self._read()
        if found is None:
            return []
        state, tensors = found
        with torch.no_grad():
            for name, p in _trainable(model).items():
                p.copy_(tensors[f"model.{name}"])
        inner = _nested(state["optimizer"]["state"], tensors)
        optimizer.load_state_dict({"state": inner, "param_groups": state["optimizer"]["param_groups"]})
        scheduler.load_state_dict(state["scheduler"])
        meter.spend = from_json(Spend, state["meter"]["spend"])
        meter.passes.update(state["meter"]["passes"])
        return list(state["logs"])

    def kept(self) -> Any:
        """What `more` gave when the state was saved; None without a sound state."""
        found = self._read()
        return None if found is None else found[0].get("more")

    def _read(self) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.folder / STATE).is_file():
            return None
        try:
            state = read_json(self.folder / STATE)
            return state, load_file(self.folder / state["tensors"])
        except (TiterError, SafetensorError, OSError, KeyError, json.JSONDecodeError):
            return None

    def clear(self) -> None:
        """Remove the folder: the training it belongs to is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
