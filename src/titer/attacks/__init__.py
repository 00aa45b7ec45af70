"""Attacks: frozen hyper-parameters, then run in a session that meters, clips to the budget and grades.

Third parties pass an import path (`pkg.mod:Class`) wherever a name goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.attacks.base import Attack
from titer.schema.registry import Kind
from titer.training.session import Session, Stopped

ATTACKS = Kind("attack", "titer.attacks")


def make_attack(name: str, options: Mapping[str, Any]) -> Attack:
    """The attack called `name` with its hyper-parameters, validated."""
    attack: Attack = ATTACKS.build(name, options)
    return attack


__all__ = ["ATTACKS", "Attack", "Session", "Stopped", "make_attack"]
