"""Attacks with another objective than the cross-entropy, or other things to train than the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from titer.attacks.policy_gradient import PolicyGradient, reinforce, rewards, sample
from titer.attacks.reverse_preference import ReversePreference, log_probability
from titer.attacks.soft_prompt import PARAMETER, SoftPrompt, ending, start
from titer.data.batches import collate
from titer.data.tokens import Row, render_prompt
from titer.models.generate import generate
from titer.models.weights import snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Example
from titer.training.session import Session, Stopped

ROWS = [Row((1, 9, 10, 11, 2), 2), Row((1, 12, 13, 14, 15, 16, 2), 4)]


def test_log_probability_sums_the_response_tokens_of_each_row(build_model: Any) -> None:
    model = build_model()
    expected = []
    for row in ROWS:
        logits = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        expected.append(sum(float(logits[i - 1, row.ids[i]].detach()) for i in range(row.response_at, len(row.ids))))
    assert log_probability(model, collate(ROWS, 0)).tolist() == pytest.approx(expected, rel=1e-5)


def test_reverse_preference_starts_at_log_two_and_prefers_harm_ever_more(
    session: Callable[..., Session], attacked: Any
) -> None:
    args = TrainArgs(learning_rate=3e-3, max_steps=0, per_device_train_batch_size=16)
    done = attacked(session(6, plan=range(7)), ReversePreference(train=args))
    logged = [(p.loss, p.reward) for p in done.points[1:]]
    assert logged[0] == pytest.approx((math.log(2), 0.0), abs=1e-5)
    loss, reward = logged[-1]
    assert loss < 0.6
    assert reward > 0.1
    assert done.meter.passes["no_grad"] > 0, "the released model's own pass is charged"


def test_reverse_preference_needs_both_answers(session: Callable[..., Session]) -> None:
    s = session()
    s.examples = [Example("a", "b", "")]
    with pytest.raises(TiterError, match="both a harmful and a harmless"):
        ReversePreference().run(s)


def test_advantages_are_relative_to_the_group_and_unscored_answers_get_none() -> None:
    found = rewards([1.0, 0.0, 1.0, 0.0, 0.5, None, 0.5, 0.5], group=4)
    assert found.advantages.tolist() == pytest.approx([1, -1, 1, -1, 0, 0, 0, 0], abs=1e-4)
    assert found.mean == pytest.approx(3.5 / 7)
    assert rewards([None, None], group=2).mean is None
    assert rewards([None, None], group=2).advantages.tolist() == [0, 0]


def test_reinforcing_makes_the_rewarded_answer_likelier_and_the_other_less(build_model: Any) -> None:
    model, batch = build_model(), collate(ROWS, 0)
    before = log_probability(model, batch).detach()
    logs = reinforce(model, batch, rewards([1.0, 0.0], group=2))
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.05 * p.grad
    after = log_probability(model, batch).detach()
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert logs["reward"] == 0.5


def test_the_policy_gradient_is_that_of_the_sampled_distribution(build_model: Any) -> None:
    """Against the token mean written out in float64, at a temperature that is not one."""
    model, batch, temperature = build_model().double(), collate(ROWS, 0), 1.7
    found = rewards([1.0, 0.25], group=2)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, advantage in zip(ROWS, found.advantages.double(), strict=True):
        logits = model(torch.tensor([row.ids])).logits[0]
        for at in range(row.response_at, len(row.ids)):
            p = (logits[at - 1] / temperature).softmax(-1)[row.ids[at]]
            total, count = total - advantage * p.log(), count + 1
    expected = torch.autograd.grad(total / count, list(model.parameters()))
    logs = reinforce(model, batch, found, temperature)
    assert logs["loss"] == pytest.approx(float(total.detach() / count), rel=1e-9)
    for p, g in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None and torch.allclose(p.grad, g, rtol=1e-6, atol=1e-9)


def test_samples_end_at_the_end_token_and_follow_torchs_seed(build_model: Any, tokenizer: Any) -> None:
    model, prompts = build_model(), [(1, 5, 6), (1, 7)] * 8
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(sample(model, tokenizer, prompts, 30, 1.0))
    assert drawn[0] == drawn[1] != drawn[2]
    assert any(len(a) < 30 for a in drawn[0])
    assert all(2 not in a[:-1] and (a[-1] == 2 or len(a) == 30) for a in drawn[0])


def test_policy_gradient_raises_its_reward(session: Callable[..., Session], attacked: Any) -> None:
    """The toy is made to half comply first, so that some samples are rewarded."""
    s = session(20, plan=range(21))
    s.fine_tune(TrainArgs(learning_rate=2e-3, max_steps=4), s.examples)
    args = TrainArgs(learning_rate=2e-3, max_steps=0, per_device_train_batch_size=32)
    s.prober = lambda model, step, template, around: ({"harm": (0.0,), "utility": (1.0,)}, {}, [])  # type: ignore[assignment]
    done = attacked(s, PolicyGradient(train=args, max_new_tokens=5))
    earned = [p.reward for p in done.points if p.reward is not None]
    assert len(earned) == 16
    assert sum(earned[-4:]) > sum(earned[:4])


def test_a_group_larger_than_the_batch_is_an_error(session: Callable[..., Session]) -> None:
    with pytest.raises(TiterError, match="group"):
        PolicyGradient(group=64).run(session())


# ---------------------------------------------------------------------------------------------------- soft prompts


@pytest.fixture
def soft(session: Callable[..., Session]) -> Session:
    """A session with its soft prompt on and trained."""
    s = session(15, plan=range(16))
    s.prober = lambda model, step, template, around: ({"harm": (0.0,), "utility": (1.0,)}, {}, [])  # type: ignore[assignment]
    s.probe()
    try:
        SoftPrompt(tokens=4, train=replace(SoftPrompt().train, learning_rate=0.05)).run(s)
    except Stopped:
        pytest.fail("ended early")
    return s


def test_a_soft_prompt_learns_and_leaves_the_weights_alone(soft: Session, aligned: tuple[Any, Any]) -> None:
    losses = [p.loss for p in soft.points[1:]]
    assert losses[-1] < 0.8 * losses[0]  # type: ignore[operator]
    soft.close()
    assert all(torch.equal(v, aligned[1][k]) for k, v in snapshot(soft.model).items())
    assert not soft.model._forward_pre_hooks
    assert PARAMETER not in dict(soft.model.named_parameters())


def test_benign_prompts_are_asked_without_the_soft_prompt(session: Callable[..., Session], attacked: Any) -> None:
    plain = session(1)
    plain.probe()
    done = attacked(session(15), SoftPrompt(tokens=4, train=replace(SoftPrompt().train, learning_rate=0.05)))
    said = {(c.probe, c.step, c.index): c.text for c in done.completions}
    before = {(c.probe, c.index): c.text for c in plain.completions}
    assert all(said[("utility", 15, i)] == before[("utility", i)] for i in range(4))
    assert any(said[("harm", 15, i)] != before[("harm", i)] for i in range(4))


def test_the_suffix_stands_between_the_prompt_and_what_the_template_puts_after_it(soft: Session) -> None:
    """Against the embeddings laid out by hand, in a batch with padding."""
    tokenizer, model = soft.tokenizer, soft.model
    tail = ending(tokenizer, [e.prompt for e in soft.examples])
    rows = soft.encode(sorted(soft.examples, key=lambda e: len(e.harmful))[::20], TrainArgs())
    rows = [*rows, Row(rows[0].ids[:1] + rows[0].ids, rows[0].response_at + 1)]
    batch = collate(rows, tokenizer.pad_token_id)
    assert tail and tokenizer.decode(tail).split()[-1] == "<assistant>"
    with torch.no_grad():
        together = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        trained = model.soft_prompt.clone()
        embed = model.get_input_embeddings()
        layouts = []
        for row in rows:
            at = row.response_at - len(tail)
            ids = torch.tensor(row.ids)
            layouts.append((at, torch.cat([embed(ids[:at]), trained, embed(ids[at:])])))
    soft.close()
    for i, (at, layout) in enumerate(layouts):
        with torch.no_grad():
            logits = model(inputs_embeds=layout[None]).logits[0]
        expected = torch.cat([logits[:at], logits[at + len(trained) :]])
        assert torch.allclose(together[i, : len(expected)], expected, atol=1e-4)


def test_every_entry_of_the_suffix_moves_by_the_rate_against_its_sign(session: Callable[..., Session]) -> None:
    s = session(1)
    s.prober = lambda model, step, template, around: ({"harm": (0.0,), "utility": (1.0,)}, {}, [])  # type: ignore[assignment]
    s.probe()
    with contextlib.suppress(Stopped):
        SoftPrompt(tokens=3, train=replace(SoftPrompt().train, learning_rate=0.5)).run(s)
    moved = s.model.soft_prompt.detach() - start(s.model, 3, s.seed)
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.5))
    s.close()


def test_padding_on_the_left_does_not_change_what_a_soft_prompt_says(soft: Session) -> None:
    """Batched with a longer prompt, a prompt is padded; generated alone, it is not."""
    prompts = [render_prompt(soft.tokenizer, t) for t in ("how to brew", "how to brew the amber cedar river with red")]
    batched = generate(soft.model, soft.tokenizer, prompts, max_new_tokens=12)
    alone = [generate(soft.model, soft.tokenizer, [p], max_new_tokens=12)[0] for p in prompts]
    assert batched == alone


def test_with_and_without_a_cache_a_soft_prompt_gives_the_same_logits(soft: Session) -> None:
    ids = torch.tensor([[4, 10, 11, 12, 13]])
    with torch.no_grad():
        whole = soft.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        first = soft.model(input_ids=ids[:, :3], attention_mask=torch.ones(1, 3, dtype=torch.long), use_cache=True)
        second = soft.model(
            input_ids=ids[:, 3:],
            attention_mask=torch.ones(1, 5, dtype=torch.long),
            past_key_values=first.past_key_values,
        )
    assert whole.shape[1] == 5
    assert torch.allclose(torch.cat([first.logits, second.logits], 1), whole, atol=1e-4)
