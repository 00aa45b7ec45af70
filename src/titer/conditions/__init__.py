"""The four conditions as pure functions: curves in, verdicts with their estimates out. Imports no torch."""

from titer.conditions.generalization import generalization
from titer.conditions.parts.bands import band_rows, curve_band
from titer.conditions.parts.breach import Bar, Crossing, bar_against, crossing, kind
from titer.conditions.parts.noise import noise_floor
from titer.conditions.parts.survival import kaplan_meier, log_rank, rate
from titer.conditions.resistance import resistance
from titer.conditions.stability import selectivity, stability
from titer.conditions.trainability import trainability

__all__ = [
    "Bar",
    "Crossing",
    "band_rows",
    "bar_against",
    "crossing",
    "curve_band",
    "generalization",
    "kaplan_meier",
    "kind",
    "log_rank",
    "noise_floor",
    "rate",
    "resistance",
    "selectivity",
    "stability",
    "trainability",
]
