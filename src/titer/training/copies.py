"""Float32 copies of weights that train in 16 bits, and steps that cannot leave a weight that is not finite.

A bfloat16 weight has 8 significant bits: an update smaller than 1/256 of it is rounded away, and an attack at 3e-5
does nothing. In float16 the squares of small gradients are 0. So whatever trains in 16 bits is stepped in float32 and
then rounded (Micikevicius et al., ICLR 2018, arXiv 1710.03740, section 3.1). Beside the two bytes of weight and of
gradient this takes four bytes a weight for the copy, four for its gradient during a step, and the optimiser's state in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from titer.models.shards import from_all, own_part

HALF = (torch.bfloat16, torch.float16)
# Gradients are below 1e6 in norm and no optimiser divides by less than 1e-10, so that a rate up to this cannot
# overflow float32 in one step; beyond it the old weights are kept until the new ones are known to be finite.
SAFE_RATE = 1e6


class WithCopies(torch.optim.Optimizer):
    """An optimiser over float32 copies of the 16-bit weights it was given; other weights it steps as they are.

    `lift` moves the gradients to the copies, where they can be clipped; `step` does so too, steps the copies and
    rounds them into the weights, unless one would not be finite: then no weight changes and `broken` is set.
    A weight that somebody else has changed since the last step is taken over from there.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.broken = inner, False
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for group in inner.param_groups:
            group["params"] = [self._stepped(p) for p in group["params"]]
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})
        self._share()

    def _stepped(self, weight: nn.Parameter) -> nn.Parameter:
        if weight.dtype not in HALF:
            return weight
        copy = nn.Parameter(weight.detach().float())
        self.pairs.append((weight, copy))
        early = self.inner.state.pop(weight, None)  # Adagrad begins its sums before the first step
        if early is not None:
            self.inner.state[copy] = {k: v.to(copy.dtype) if v.dtype in HALF else v for k, v in early.items()}
        return copy

    def _share(self) -> None:
        """Schedules and checkpoints see the inner optimiser's groups and state."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @torch.no_grad()
    def lift(self) -> None:
        """Move gradients from the weights to their copies, in float32."""
        for weight, copy in self.pairs:
            if weight.grad is not None:
                copy.grad, weight.grad = weight.grad.float(), None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those of the weights too."""
        self.inner.zero_grad(set_to_none)
        for weight, _ in self.pairs:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of the copies, rounded into the weights when all are finite."""
        assert closure is None, "no rule of titer's evaluates its loss again"
        self.lift()
        for weight, copy in self.pairs:
            _take_over(own_part(weight.detach()), own_part(copy.detach()))
        before = [p.clone() for p in self._others()]
        made = _stepped(self.inner)
        self.broken = not all(from_all(made and self._finite()))
        if self.broken:
            for part, old in zip(self._others(), before, strict=True):
                part.copy_(old)
            return
        for weight, copy in self.pairs:
            own_part(weight.detach()).copy_(own_part(copy.detach()))
            copy.grad = None

    def _others(self) -> list[Tensor]:
        """What is stepped as it is: norms, say, that a model keeps in float32."""
        copies = {id(copy) for _, copy in self.pairs}
        return [own_part(p.detach()) for p in updated(self) if id(p) not in copies]

    def _finite(self) -> bool:
        rounded = (own_part(copy.detach()).to(weight.dtype) for weight, copy in self.pairs)
        return all(map(finite, rounded)) and all(map(finite, self._others()))

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's, with the copies in it."""
        found = self.inner.state_dict()
        state = {k: dict(v) for k, v in found["state"].items()}
        of = {id(copy): copy for _, copy in self.pairs}
        for number, p in enumerate(updated(self)):
            if id(p) in of:
                state.setdefault(number, {})["copy"] = p.detach()
        return {**found, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        params = list(updated(self))
        state = {int(k): dict(v) for k, v in state_dict["state"].items()}
        with torch.no_grad():
            for number, values in state.items():
                if "copy" in values:
                    params[number].copy_(values.pop("copy"))
        self.inner.load_state_dict({**state_dict, "state": {k: v for k, v in state.items() if v}})
        self._share()


def _take_over(weight: Tensor, copy: Tensor) -> None:
    """Where a weight is not its copy rounded, somebody has written to it: the copy follows."""
    changed = copy.to(weight.dtype) != weight
    if bool(changed.any()):
        copy.copy_(torch.where(changed, weight.float(), copy))


def updated(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    """Every tensor that an optimiser steps."""
    return (p for group in optimizer.param_groups for p in group["params"])


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(torch.isfinite(tensor).all())


def _safe(optimizer: Any) -> bool:
    return all(float(group["lr"]) <= SAFE_RATE for group in optimizer.param_groups)


def _stepped(optimizer: Any) -> bool:
    """Step; whether torch could: it raises where a rate, divided by Adam's corrections, is no float32."""
    try:
        optimizer.step()
    except RuntimeError:
        if _safe(optimizer):
            raise
        return False
    return True


@torch.no_grad()
def step_finite(optimizer: Any, weights: Iterable[nn.Parameter]) -> bool:
    """Step `weights`, unless one would not be finite afterwards: then all stay as they are. Whether it was made."""
    if _safe(optimizer):
        optimizer.step()
        return True
    parts = [own_part(p.detach()) for p in weights]
    before = [p.clone() for p in parts]
    made = _stepped(optimizer)
    if all(from_all(made and all(map(finite, parts)))):
        return True
    torch._foreach_copy_(parts, before)
    return False


def with_copies(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser over float32 copies where it has weights in 16 bits, else itself; before its first step."""
    return WithCopies(optimizer) if any(p.dtype in HALF for p in updated(optimizer)) else optimizer
