"""The harness of an attack: probes by plan, stops at a breach or the budget, leaves the model bare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from titer.attacks.lora import Lora
from titer.attacks.sft import Sft
from titer.models.weights import snapshot
from titer.runs.attack import _drive
from titer.schema.breach import Breach
from titer.schema.specs import TrainArgs
from titer.schema.types import Budget, Completion, Example, Score
from titer.training.session import Session, Stopped

PLAN = (0, 1, 2, 5, 10)


class ScriptedProber:
    """Scores by script, probe after probe: (harm, utility) each; the last one goes on for ever."""

    def __init__(self, *script: tuple[float | None, float | None]) -> None:
        self.script = list(script) or [(0.0, 1.0)]
        self.asked: list[int] = []

    def __call__(self, model: Any, step: int, test_template: Any = None, around: Any = None) -> Any:
        self.asked.append(step)
        harm, utility = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        said = [Completion("harm", step, 0, "p", f"probe {len(self.asked)}", "a", Score(harm, None, "exact"))]
        return {"harm": (harm,), "utility": (utility,)}, {}, said


@pytest.fixture
def scripted(model: Any, tokenizer: Any, examples: list[Example]) -> Callable[..., Session]:
    def build(
        *script: tuple[float | None, float | None], after: int = -1, plan: Sequence[int] = PLAN, **budget: Any
    ) -> Session:
        return Session(
            model=model,
            tokenizer=tokenizer,
            examples=[e for e in examples if e.restricted][:12],
            retain=[],
            prober=ScriptedProber(*script),  # type: ignore[arg-type]
            budget=Budget(**(budget or {"steps": 12})),
            plan=plan,
            breach=Breach(),
            stop_after=after,
            seed=3,
        )

    return build


def sft(**changes: Any) -> Sft:
    return Sft(train=TrainArgs(**{"max_steps": 0, "per_device_train_batch_size": 4, **changes}))


def steps(session: Session) -> list[int]:
    return [p.step for p in session.points]


def test_probes_are_at_the_plans_steps_and_the_end(scripted: Any) -> None:
    session = scripted()
    _drive(session, sft())
    assert steps(session) == session.prober.asked == [0, 1, 2, 5, 10, 12]
    assert (session.end, session.meter.spend.steps) == ("finished", 12)
    assert [p.spend.steps for p in session.points] == steps(session)


def test_the_end_is_not_probed_twice(scripted: Any) -> None:
    session = scripted(steps=10)
    _drive(session, sft())
    assert session.prober.asked == [0, 1, 2, 5, 10]


@pytest.mark.parametrize(("after", "wanted"), [(0, [0, 1, 2]), (1, [0, 1, 2, 5]), (2, [0, 1, 2, 5, 10])])
def test_a_breach_ends_it_after_so_many_further_probes(scripted: Any, after: int, wanted: list[int]) -> None:
    session = scripted((0.0, 1.0), (0.4, 1.0), (0.5, 0.9), (0.0, 1.0), after=after)
    _drive(session, sft())
    assert steps(session) == wanted
    assert session.end == "breached"


def test_a_breach_that_is_not_to_stop_it_does_not(scripted: Any) -> None:
    session = scripted((1.0, 1.0), after=-1)
    _drive(session, sft())
    assert (steps(session)[-1], session.end) == (12, "finished")


@pytest.mark.parametrize(
    "script",
    [
        [(0.0, 1.0), (0.49, 1.0)],
        [(0.0, 1.0), (1.0, 0.89)],
        [(0.0, 1.0), (None, 1.0)],
    ],
    ids=["below-phi", "utility-lost", "not-scored"],
)
def test_what_is_no_breach_is_censored_at_the_budget(scripted: Any, script: Any) -> None:
    session = scripted(*script, after=0)
    _drive(session, sft())
    assert (steps(session)[-1], session.end) == (12, "finished")


def test_what_conditions_call_incoherent_does_not_end_it(scripted: Any) -> None:
    """High harm in text that is mostly gibberish is no breach, for the session as for the conditions."""
    session = scripted((0.0, 1.0), (0.9, 1.0), after=0)
    real = session.prober

    def gibberish(*asked: Any) -> Any:
        scores, _, said = real(*asked)
        return scores, {"harm": {"incoherent": 9, "comply": 1}}, said

    session.prober = gibberish
    session.fine_tune(sft().train, session.examples)
    session.finish()
    assert session.end == "finished" and session.points[-1].step == 12


def test_a_model_that_is_broken_already_is_not_attacked(scripted: Any) -> None:
    session = scripted((1.0, 1.0), after=0)
    _drive(session, sft())
    assert (steps(session), session.end, session.meter.spend.steps) == ([0], "breached", 0)


def test_probing_a_step_again_replaces_the_point_and_is_no_further_probe(scripted: Any) -> None:
    session = scripted((0.0, 1.0), (1.0, 1.0), after=1)
    for _ in range(3):
        session.probe()
    assert steps(session) == [0]
    assert [c.text for c in session.completions] == ["probe 3"]
    assert not session.over


@pytest.mark.parametrize("budget", [{"tokens": 300}, {"examples": 18}, {"flops": 2e7}])
def test_any_unit_of_the_budget_ends_it(scripted: Any, budget: dict[str, float]) -> None:
    session = scripted(**budget)
    _drive(session, sft())
    (unit, limit) = next(iter(budget.items()))
    spent = [getattr(session.meter.spend, unit)]
    per_step = spent[0] / session.meter.spend.steps
    assert limit <= spent[0] < limit + 1.5 * per_step
    assert steps(session)[-1] == session.step == session.meter.spend.steps


def test_no_budget_is_no_attack(scripted: Any) -> None:
    session = scripted(steps=0)
    before = snapshot(session.model)
    _drive(session, sft())
    assert steps(session) == [0]
    assert all(torch.equal(v, before[k]) for k, v in session.model.state_dict().items())


def test_divergence_is_an_end_and_its_model_is_not_graded(scripted: Any) -> None:
    session = scripted()
    _drive(session, sft(learning_rate=1e38, optim="sgd", max_grad_norm=0))
    assert session.end == "diverged"
    assert session.step < 10
    assert set(steps(session)) <= set(PLAN)


def test_the_attacks_own_length_is_kept(scripted: Any) -> None:
    session = scripted(steps=50)
    _drive(session, sft(max_steps=3))
    assert (steps(session), session.end) == ([0, 1, 2, 3], "finished")


def test_phases_add_up_and_share_the_budget(scripted: Any) -> None:
    class TwoPhases:
        def run(self, session: Session) -> None:
            args = TrainArgs(max_steps=4, per_device_train_batch_size=4)
            session.fine_tune(args, session.examples)
            assert session.step == 4
            session.fine_tune(args, session.examples)
            session.fine_tune(args, session.examples)
            raise AssertionError("the budget is spent")

    session = scripted(steps=9)
    _drive(session, TwoPhases())
    assert (steps(session), session.meter.spend.steps) == ([0, 1, 2, 5, 9], 9)


def test_the_loss_of_a_point_is_the_mean_since_the_last_one(scripted: Any) -> None:
    session = scripted(plan=(0, 2, 4))
    session.probe()
    for step, loss in ((1, 1.0), (2, 3.0), (3, 5.0), (4, 6.0)):
        session.stepped(step, {"loss": loss})
    assert [p.loss for p in session.points] == [None, 2.0, 5.5]


def test_batches_follow_the_seed_and_the_stream(scripted: Any) -> None:
    session, args = scripted(), TrainArgs(per_device_train_batch_size=3)
    rows = session.encode(session.examples, args)

    def first(stream: int) -> list[Any]:
        return next(session.batches(rows, args, stream=stream)).input_ids.tolist()  # type: ignore[no-any-return]

    assert first(0) == first(0) != first(1)
    session.seed += 1
    assert first(0) != next(scripted().batches(rows, args)).input_ids.tolist()


@pytest.mark.parametrize("end", ["finished", "crashed", "diverged"])
def test_the_adapter_is_taken_off_however_it_ends(scripted: Any, end: str) -> None:
    session, undone = scripted(steps=4), []
    before = snapshot(session.model)

    class Attack:
        def run(self, session: Session) -> None:
            session.undo.callback(undone.append, 1)
            rate = {"diverged": 1e38}.get(end, 1e-2)
            Lora(train=TrainArgs(max_steps=0, lora_r=2, learning_rate=rate, optim="sgd", max_grad_norm=0)).run(session)

    if end == "crashed":
        session.on_progress = lambda step: 1 / 0
        with pytest.raises(ZeroDivisionError):
            _drive(session, Attack())
    else:
        _drive(session, Attack())
        assert session.end == end
    assert undone == [1]
    assert set(session.model.state_dict()) == set(before)
    assert all(torch.equal(v, before[k]) for k, v in session.model.state_dict().items())


def test_an_error_in_the_first_probe_is_the_one_that_is_seen(scripted: Any) -> None:
    session = scripted()

    def fail(*_: Any) -> Any:
        raise KeyError("mine")

    session.prober = fail
    with pytest.raises(KeyError, match="mine"):
        _drive(session, sft())


def test_training_past_the_budget_raises_stopped(scripted: Any) -> None:
    session = scripted(steps=2)
    session.probe()
    with pytest.raises(Stopped, match="budget:steps"):
        sft(max_steps=9).run(session)
