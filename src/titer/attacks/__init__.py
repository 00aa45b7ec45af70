"""Attacks: frozen hyper-parameters, then run in a session that meters, clips to the budget and grades.

Third parties pass an import path (`pkg.mod:Class`) wherever a name goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from titer.schema.registry import build
from titer.schema.specs import Template
from titer.training.session import Session, Stopped

ATTACKS = {
    "none": "titer.attacks.none:NoAttack",
    "sft": "titer.attacks.sft:Sft",
    "lora": "titer.attacks.lora:Lora",
    "sgd": "titer.attacks.sgd:Sgd",
    "few-shot": "titer.attacks.few_shot:FewShot",
    "mixed": "titer.attacks.mixed:Mixed",
    "benign": "titer.attacks.benign:Benign",
    "benign-then-harmful": "titer.attacks.benign_then_harmful:BenignThenHarmful",
    "identity-shift": "titer.attacks.identity_shift:IdentityShift",
    "jailbreak-tuning": "titer.attacks.jailbreak_tuning:JailbreakTuning",
    "prefill": "titer.attacks.prefill:Prefill",
    "retain-then-harmful": "titer.attacks.retain_then_harmful:RetainThenHarmful",
    "kick-settle": "titer.attacks.kick_settle:KickSettle",
    "side-step": "titer.attacks.side_step:SideStep",
    "known-layers": "titer.attacks.known_layers:KnownLayers",
    "repair": "titer.attacks.repair:Repair",
    "refusal-ablation": "titer.attacks.refusal_ablation:RefusalAblation",
    "warm-start": "titer.attacks.warm_start:WarmStart",
    "quantise": "titer.attacks.quantise:Quantise",
    "prune": "titer.attacks.prune:Prune",
    "merge-with-base": "titer.attacks.merge_with_base:MergeWithBase",
    "reverse-preference": "titer.attacks.reverse_preference:ReversePreference",
    "policy-gradient": "titer.attacks.policy_gradient:PolicyGradient",
    "soft-prompt": "titer.attacks.soft_prompt:SoftPrompt",
    "sft-hf": "titer.attacks.sft_hf:HfSft",
}


class Attack(Protocol):
    """What the harness needs of an attack. `test_template`, when given, wraps the harm prompts at every probe."""

    name: ClassVar[str]
    source: ClassVar[str]

    @property
    def test_template(self) -> Template | None:
        """How the attacker words harm prompts at test time; None leaves the probe's own template."""

    def run(self, session: Session) -> None:
        """Change `session.model` by the session's means until done; the session raises `Stopped` when it is over."""


def make_attack(name: str, options: Mapping[str, Any]) -> Attack:
    """The attack called `name` with its hyper-parameters, validated."""
    attack: Attack = build("attack", ATTACKS, name, options)
    return attack


__all__ = ["ATTACKS", "Attack", "Session", "Stopped", "make_attack"]
