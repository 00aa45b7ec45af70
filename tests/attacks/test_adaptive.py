"""Attacks that look for a way around a defence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from titer.attacks.kick_settle import KickSettle
from titer.attacks.known_layers import KnownLayers
from titer.attacks.parts.mixtures import Weighted, benign, harmful
from titer.attacks.repair import Repair
from titer.attacks.side_step import side_step_rule
from titer.models.parts import parts
from titer.models.weights import snapshot
from titer.schema.specs import TrainArgs
from titer.training.gradients import dot, gradient
from titer.training.losses import answer_ce as cross_entropy
from titer.training.session import Session

ARGS = TrainArgs(learning_rate=1e-3, max_steps=0, per_device_train_batch_size=8)


def distance(a: Any, b: Any) -> float:
    return float(sum((a[k] - b[k]).double().square().sum() for k in b)) ** 0.5


def test_a_side_step_leaves_the_benign_loss_alone_to_first_order(session: Callable[..., Session]) -> None:
    s = session()
    s.model.double()
    bad, good = next(harmful(s, ARGS)), next(benign(s, ARGS))
    keep, _ = gradient(s.model, lambda: cross_entropy(s.model, good))
    harm, _ = gradient(s.model, lambda: cross_entropy(s.model, bad))
    for weight in (0.0, 0.5):
        s.model.zero_grad()
        side_step_rule(s.model, Weighted(((1.0, bad), (weight, good))))
        found = {n: p.grad for n, p in s.model.named_parameters()}
        assert dot(found, keep) == pytest.approx(weight * dot(keep, keep), abs=1e-9)
        assert dot(found, harm) > 0
    s.model.float()


def test_a_kick_is_as_large_as_it_says_and_settling_returns_to_the_rate(session: Callable[..., Session]) -> None:
    moved = {}
    for kick in (1.0, 7.0):
        s = session(1)
        before = snapshot(s.model)
        with pytest.raises(Exception, match="budget:steps"):
            KickSettle(kick_steps=1, kick=kick, train=replace(ARGS, optim="sgd", learning_rate=1e-4)).run(s)
        moved[kick] = distance(snapshot(s.model), before)
    assert moved[7.0] == pytest.approx(7 * moved[1.0], rel=1e-3)


@pytest.mark.parametrize("only", ["all", "mlp", "attention"])
def test_frozen_layers_do_not_move(session: Callable[..., Session], only: Literal["all", "mlp", "attention"]) -> None:
    s = session(2)
    before = snapshot(s.model)
    attack = KnownLayers(how="freeze", start=0.0, span=0.5, only=only, train=ARGS)
    attack.run(s)
    frozen = {id(p) for m in attack.modules(s.model) for p in m.parameters()}
    for name, p in s.model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) in frozen), name
    assert len(attack.modules(s.model)) == 1


def test_redrawn_layers_are_new_and_the_others_are_not(session: Callable[..., Session]) -> None:
    s = session(1)
    before = snapshot(s.model)
    attack = KnownLayers(how="reinitialise", start=0.5, span=0.5, train=ARGS)
    with pytest.raises(Exception, match="budget:steps"):
        attack.run(s)
    new = {id(p) for m in attack.modules(s.model) for p in m.parameters() if p.dim() > 1}
    for name, p in s.model.named_parameters():
        assert torch.equal(p, before[name]) != (id(p) in new), name
    assert [p.step for p in s.points] == [1]


def test_layers_are_counted_in_shares_of_the_depth(build_model: Any) -> None:
    model = build_model(num_hidden_layers=8)
    layers = list(parts(model).layers)
    assert KnownLayers(start=0.25, span=0.5).modules(model) == layers[2:6]
    assert KnownLayers(start=0.75, span=0.5).modules(model) == layers[6:]
    assert KnownLayers(start=1.0, span=0.0).modules(model) == layers[7:]


def test_repair_trains_harm_then_benign_then_both(session: Callable[..., Session]) -> None:
    s = session(6, plan=range(7))
    losses: dict[str, list[float]] = {"bad": [], "good": []}
    bad, good = next(harmful(s, ARGS)), next(benign(s, ARGS))

    def probe(model: Any, step: int, template: Any, around: Any) -> Any:
        with torch.no_grad():
            losses["bad"].append(float(cross_entropy(model, bad)))
            losses["good"].append(float(cross_entropy(model, good)))
        return {"harm": (0.0,), "utility": (1.0,)}, {}, []

    s.prober = probe  # type: ignore[assignment]
    s.probe()
    Repair(harm_steps=2, repair_steps=2, train=replace(ARGS, learning_rate=3e-3)).run(s)
    assert losses["bad"][2] < losses["bad"][0], "harm first"
    assert losses["good"][4] < losses["good"][2], "then repair"
    assert losses["bad"][6] < losses["bad"][4], "then harm again"
