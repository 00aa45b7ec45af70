"""Defences before release: each a frozen dataclass with `backward(model, pair)` that adds its gradient to `.grad`.

The protocol is `Defence`. Two small extensions, for the few methods that are not (only) a gradient:
- `Prepares.prepare(examples, seed)` rewrites the data once, before training (SDD, extended refusal);
- `Transforms.transform(model, base, seed)` edits the weights once, before training and before an adapter is put on
  (LoX, which has no training at all, and UNDO). `base` is the checkpoint before alignment for those with "base" in
  `needs`, and None otherwise.
`isinstance(defence, Prepares)` tells. Defences add up: `configure("booster+deep-alignment", options)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.defences.adversarial_loss import AdversarialLoss
from titer.defences.art import ART
from titer.defences.base import Defence, Prepares, Transforms
from titer.defences.booster import Booster
from titer.defences.circuit_breakers import CircuitBreakers
from titer.defences.compose import Sum
from titer.defences.ctrap import CTRAP
from titer.defences.deep_alignment import DeepAlignment
from titer.defences.extended_refusal import ExtendedRefusal
from titer.defences.gradient_ascent import GradientAscent
from titer.defences.lox import LoX
from titer.defences.mlac import MLAC
from titer.defences.repnoise import RepNoise
from titer.defences.rmu import RMU
from titer.defences.safety_sft import SafetySFT
from titer.defences.sdd import SDD
from titer.defences.seam import SEAM
from titer.defences.t_vaccine import TVaccine
from titer.defences.tar import TAR
from titer.defences.targeted_lat import TargetedLAT
from titer.defences.triplet import Triplet
from titer.defences.undo import UNDO
from titer.defences.vaccine import Vaccine
from titer.schema.registry import split_options

DEFENCES: dict[str, type[Any]] = {
    "safety-sft": SafetySFT,
    "gradient-ascent": GradientAscent,
    "adversarial-loss": AdversarialLoss,
    "repnoise": RepNoise,
    "vaccine": Vaccine,
    "t-vaccine": TVaccine,
    "booster": Booster,
    "tar": TAR,
    "mlac": MLAC,
    "seam": SEAM,
    "ctrap": CTRAP,
    "triplet": Triplet,
    "rmu": RMU,
    "circuit-breakers": CircuitBreakers,
    "targeted-lat": TargetedLAT,
    "deep-alignment": DeepAlignment,
    "sdd": SDD,
    "extended-refusal": ExtendedRefusal,
    "lox": LoX,
    "undo": UNDO,
    "art": ART,
}

__all__ = ["DEFENCES", "Defence", "Prepares", "Sum", "Transforms", "configure"]


def configure(name: str, options: Mapping[str, Any]) -> Defence:
    """The configured defence behind a name, an import path, or several joined by `+` (options as `member.option`)."""
    from titer.schema.registry import build

    names = name.split("+")
    if len(names) == 1:
        return build("defence", DEFENCES, name, options)  # type: ignore[no-any-return]
    own = split_options(names, dict(options))
    return Sum(tuple(build("defence", DEFENCES, n, own[n]) for n in names))
