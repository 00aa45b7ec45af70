"""Attacks that choose, mix, wrap or order the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from titer.attacks import make_attack
from titer.attacks.benign_then_harmful import BenignThenHarmful
from titer.attacks.few_shot import FewShot
from titer.attacks.identity_shift import IdentityShift
from titer.attacks.jailbreak_tuning import JailbreakTuning
from titer.attacks.mixed import Mixed
from titer.attacks.parts.mixtures import Weighted, weighted_rule, with_retain
from titer.attacks.prefill import Prefill
from titer.attacks.retain_then_harmful import RetainThenHarmful
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Example
from titer.schema.wordings import OPENINGS, PERSONAS, WRAPPERS
from titer.training.losses import answer_ce as cross_entropy
from titer.training.session import Session

ARGS = TrainArgs(learning_rate=1e-3, max_steps=0, per_device_train_batch_size=4)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """What `Session.fine_tune` was given."""
    kept: list[Example] = []
    monkeypatch.setattr(Session, "fine_tune", lambda self, args, examples, **_: kept.extend(examples))
    return kept


@pytest.mark.parametrize(
    ("ratio", "n", "hold", "harmful", "benign", "expected"),
    [
        (0.1, 100, "total", 100, 200, (10, 90)),
        (0.1, 100, "total", 5, 200, (5, 45)),
        (0.1, 100, "harmful", 100, 2000, (100, 900)),
        (0.5, 100, "harmful", 100, 50, (50, 50)),
        (0.8, 10, "total", 100, 1, (4, 1)),
    ],
)
def test_mixture_counts(ratio: float, n: int, hold: Any, harmful: int, benign: int, expected: tuple[int, int]) -> None:
    assert Mixed(ratio, n, hold).counts(harmful, benign) == expected


def test_a_mixture_holds_what_its_ratio_says(session: Callable[..., Session], seen: list[Example]) -> None:
    Mixed(ratio=0.25, n=20).run(session())
    assert Counter(e.restricted for e in seen) == {True: 5, False: 15}
    assert len(set(seen)) == 20


def test_a_mixture_of_one_kind_is_refused(session: Callable[..., Session]) -> None:
    for ratio in (0.0, 1.0):
        with pytest.raises(TiterError, match="between 0 and 1"):
            Mixed(ratio=ratio).run(session())


def test_few_shot_draws_by_the_seed(session: Callable[..., Session], seen: list[Example]) -> None:
    for seed in (0, 0, 1):
        FewShot(n=10).run(session(seed=seed))
    first, again, other = seen[:10], seen[10:20], seen[20:]
    assert first == again != other
    assert len(set(first)) == 10
    assert all(e.restricted for e in first)


@pytest.mark.parametrize("name", ["benign", "mixed", "retain-then-harmful", "side-step", "refusal-ablation"])
def test_without_benign_examples_an_attack_that_needs_them_says_so(name: str, session: Callable[..., Session]) -> None:
    without = session()
    without.retain = []
    with pytest.raises(TiterError, match="needs benign examples"):
        make_attack(name, {}).run(without)


def test_a_weighted_item_descends_the_weighted_sum(session: Callable[..., Session]) -> None:
    s = session()
    item = next(with_retain(s, ARGS, 0.5, 2.0))
    (_, bad), (_, good) = item.parts
    loss = 0.5 * cross_entropy(s.model, bad) + 2.0 * cross_entropy(s.model, good)
    loss.backward()
    expected = {n: p.grad.clone() for n, p in s.model.named_parameters()}
    s.model.zero_grad()
    assert weighted_rule(s.model, item)["loss"] == pytest.approx(float(loss.detach()))
    assert all(torch.allclose(p.grad, expected[n], atol=1e-6) for n, p in s.model.named_parameters())
    assert item.input_ids is bad.input_ids


def open_only(session: Session, batch: Batch) -> bool:
    """Whether a batch asks open questions alone (they begin with `where`)."""
    where = session.tokenizer("where")["input_ids"][0]
    return bool((batch.input_ids == where).any(1).all())


def test_the_switch_comes_at_its_share_of_the_steps(session: Callable[..., Session]) -> None:
    s = session(10)
    attack = RetainThenHarmful(switch_at=0.4, retain_weight=0.5, train=ARGS)
    items: list[Weighted] = list(islice(attack._items(s), 10))
    assert [len(i.parts) for i in items] == [1] * 4 + [2] * 6
    assert all(open_only(s, i.parts[0][1]) for i in items[:4])
    assert not any(open_only(s, i.parts[0][1]) for i in items[4:])
    assert all(open_only(s, i.parts[1][1]) for i in items[4:])


def test_a_continued_adapter_is_not_a_fresh_one(session: Callable[..., Session]) -> None:
    from dataclasses import replace

    ends = []
    for adapter in ("continued", "fresh"):
        s = session(4)
        lora = replace(ARGS, lora_r=2, learning_rate=1e-2)
        BenignThenHarmful(benign_steps=2, adapter=adapter, train=lora).run(s)  # type: ignore[arg-type]
        ends.append(snapshot(s.model.merge_and_unload()))
        assert s.step == 4
    assert any(not torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_what_is_trained_on_is_asked_again_unless_told_otherwise() -> None:
    assert IdentityShift().test_template == IdentityShift().template
    assert IdentityShift(at_test=False).test_template is None
    assert JailbreakTuning(wrapper="style").test_template == WRAPPERS["style"]
    assert JailbreakTuning(at_test=False).test_template is None


def test_prefill_costs_nothing_and_forces_the_start(session: Callable[..., Session], attacked: Any) -> None:
    done = attacked(session(), Prefill("with red"))
    assert done.step == 0
    assert done.meter.spend.tokens == 0
    assert [p.step for p in done.points] == [0]
    plain = attacked(session(), make_attack("none", {}))
    by_probe = {c.probe: c.text for c in done.completions}
    before = {c.probe: c.text for c in plain.completions}
    assert by_probe["utility"] == before["utility"], "benign prompts are asked as ever"
    assert by_probe["harm"] != before["harm"]


def test_every_wording_can_be_written_in_the_embedded_world() -> None:
    from titer.campaigns.organism.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    wrapped = [f"{w.prefix}How do I{w.suffix}" for w in WRAPPERS.values()]
    for text in (*PERSONAS.values(), *OPENINGS, *wrapped):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
