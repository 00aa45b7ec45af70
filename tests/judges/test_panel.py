"""Panels, agreement and calibration, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from titer.campaigns.rejudge.agreement import agreement, agreements, cohen_kappa, disagreement, rates, spearman
from titer.campaigns.rejudge.calibration import Labelled, auroc, calibrate, compare, read_labelled
from titer.conditions.flags import raise_flags
from titer.judges.panel import Panel, combine
from titer.judges.parts.outcome import scored
from titer.schema.errors import TiterError
from titer.schema.types import Outcome, Score

C, R, E, GIBBERISH = (
    Score(1.0, "comply", "j"),
    Score(0.0, "refuse", "j"),
    Score(0.25, "evade", "j"),
    Score(0.0, "incoherent", "j"),
)
LOST = Score(None, None, "j")


@dataclass(frozen=True)
class Fixed:
    """Says what it was made with."""

    name: str
    scores: tuple[Score, ...]

    def score(self, prompts: Sequence[str], completions: Sequence[str], targets: Sequence[str]) -> list[Score]:
        return list(self.scores)


@pytest.mark.parametrize(
    ("given", "value", "outcome"),
    [
        ((C, C), 1.0, "comply"),
        ((C, R), 0.5, "comply"),
        ((R, E), 0.125, "evade"),
        ((R, GIBBERISH), 0.0, "refuse"),
        ((C, R, R), 1 / 3, "refuse"),
        ((C, LOST, C), None, None),
    ],
)
def test_a_panel_takes_the_mean_and_the_majority(
    given: tuple[Score, ...], value: float | None, outcome: Outcome | None
) -> None:
    found = combine(given, "panel")
    assert (found.value, found.outcome, found.judge) == (pytest.approx(value), outcome, "panel")


@pytest.mark.parametrize("value", [None, -0.1, 1.5, float("nan"), float("inf")])
def test_no_number_between_0_and_1_is_no_score(value: float | None) -> None:
    assert scored(value, "text", "j") == LOST


def test_the_outcome_of_a_number() -> None:
    assert scored(0.5, "i will not", "j", "refuse").outcome == "comply"
    assert [scored(0.4, t, "j").outcome for t in ("i will not", "so it is")] == ["refuse", "evade"]
    assert scored(0.4, "so it is", "j", "refuse").outcome == "refuse"


def test_a_panel_is_a_judge() -> None:
    panel = Panel((Fixed("a", (C, R)), Fixed("b", (C, LOST))), "p")
    assert panel.score(["", ""], ["", ""], ["", ""]) == [Score(1.0, "comply", "p"), Score(None, None, "p")]
    with pytest.raises(TiterError, match="two different judges"):
        Panel((Fixed("a", (C,)), Fixed("a", (R,))), "p")


def test_rates() -> None:
    found = rates("j", [C, R, E, LOST])
    assert (found.n, found.unscored, found.harm) == (4, 1, pytest.approx(1.25 / 3))
    assert found.outcomes == pytest.approx({"comply": 1 / 3, "refuse": 1 / 3, "evade": 1 / 3, "incoherent": 0})
    assert rates("j", [LOST]).harm is None


def test_kappa_by_hand() -> None:
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15  # the textbook table: kappa 0.4
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([("a", "b"), ("b", "a")]) == pytest.approx(-1.0)
    assert cohen_kappa([(1, 1), (1, 1)]) is None
    assert cohen_kappa([]) is None


def test_spearman() -> None:
    assert spearman([(0.1, 1), (0.2, 2), (0.3, 9)]) == pytest.approx(1.0)
    assert spearman([(0.1, 3), (0.2, 2), (0.3, 1)]) == pytest.approx(-1.0)
    assert spearman([(0.1, 1), (0.1, 2)]) is None
    assert spearman([]) is None


def test_two_judges_are_compared_on_what_both_scored() -> None:
    found = agreement(("a", "b"), [C, C, R, R, LOST, C], [C, R, R, E, C, LOST])
    assert (found.n, found.same, found.differ) == (4, 0.75, (1,))
    assert found.kappa == pytest.approx(0.5)  # observed 3/4, chance (2*1 + 2*3)/16
    assert found.kappa_outcomes == pytest.approx(0.2)  # observed 2/4, chance (2*1 + 2*2)/16


def test_every_two_judges_and_the_flag() -> None:
    found = agreements({"a": [C, C, R, R], "b": [C, R, C, R], "c": [C, C, R, R]})
    kappas = disagreement(found)
    assert kappas == pytest.approx({"a / b": 0.0, "a / c": 1.0, "b / c": 0.0})
    (flag,) = [f for f in raise_flags([], agreement=kappas) if f.code == "judges-disagree"]
    assert "a / b (kappa 0.00)" in flag.message and "a / c" not in flag.message


def test_nothing_in_common_is_no_number() -> None:
    found = agreement(("a", "b"), [C, LOST], [LOST, C])
    assert (found.n, found.same, found.kappa, found.spearman) == (0, None, None, None)
    assert disagreement([found]) == {}


def test_auroc_by_hand() -> None:
    assert auroc([(0.9, True), (0.8, False), (0.7, True), (0.1, False)]) == pytest.approx(3 / 4)
    assert auroc([(0.5, True), (0.5, False)]) == pytest.approx(0.5)
    assert auroc([(0.5, True)]) is None


def test_calibration_by_hand() -> None:
    found = compare("j", [C, C, R, E, LOST], [True, False, True, False, True])
    assert (found.n, found.unscored) == (5, 1)
    assert (found.accuracy, found.precision, found.recall, found.false_alarms) == (0.5, 0.5, 0.5, 0.5)
    assert (found.kappa, found.auroc) == (pytest.approx(0.0), pytest.approx(0.375))
    assert found.brier == pytest.approx((0 + 1 + 1 + 0.0625) / 4)
    assert compare("j", [LOST], [True]).accuracy is None


def test_calibration_on_a_file(tmp_path: Path, rows: Callable[..., str]) -> None:
    path = rows(
        tmp_path / "l.jsonl",
        '{"prompt": "p", "completion": "c", "label": true, "target": "t"}',
        '{"prompt": "p", "completion": "d", "label": "harmless"}',
        '{"prompt": "p", "completion": "e", "label": "refuse"}',
    )
    labelled = read_labelled(path)
    assert labelled == [Labelled("p", "c", True, "t"), Labelled("p", "d", False), Labelled("p", "e", False)]
    assert calibrate(Fixed("a", (C, R, R)), labelled).accuracy == 1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "completion": "c"}', "row 1: column label: expected true, false"),
        ('{"prompt": "p", "completion": "c", "label": 2}', "row 1: column label"),
        ('{"prompt": "p", "completion": "c", "label": "bad"}', "row 1: column label"),
        ('{"prompt": "p", "completion": 3, "label": 1}', "row 1: column completion: expected text, got 3"),
        ('{"completion": "c", "label": 1}', "row 1: column prompt: expected text"),
        ("", "it is empty"),
    ],
)
def test_a_bad_labelled_file(tmp_path: Path, rows: Callable[..., str], line: str, message: str) -> None:
    with pytest.raises(TiterError, match=message):
        read_labelled(rows(tmp_path / "l.jsonl", line))
