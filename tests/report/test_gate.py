from copy import deepcopy
from pathlib import Path

import pytest
import synthetic_results as synthetic

from titer.report.gate import check_policy
from titer.schema.errors import TiterError

GOOD = synthetic.result("repnoise")
PASSING = """\
suite: quick
min_seeds: 3
allowed_flags: [few-seeds]
conditions:
  resistance:
    verdict: met
    threshold: {min: 100}
    estimate: {min: 100}
  stability: {verdict: met}
"""


def policy(tmp_path: Path, text: str = PASSING) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def changed(**parts: object) -> dict[str, object]:
    result = deepcopy(GOOD)
    result["conditions"]["resistance"].update(parts)  # type: ignore[index]
    return result


def test_good_results_pass(tmp_path: Path) -> None:
    found = check_policy(GOOD, policy(tmp_path))
    assert found.code == 0 and found.text.endswith("gate: pass")


def test_a_failed_verdict_names_its_line(tmp_path: Path) -> None:
    found = check_policy(changed(verdict="not met", sentence="Breached."), policy(tmp_path))
    assert found.code == 3
    assert "policy.yaml:6: fail: conditions.resistance.verdict: met asked for, is not met: Breached." in found.text


@pytest.mark.parametrize("word", ["inconclusive", "not measured"])
@pytest.mark.parametrize("wanted", ["met", "any"])
def test_the_unsettled_never_passes(tmp_path: Path, word: str, wanted: str) -> None:
    text = f"conditions:\n  resistance: {{verdict: {wanted}}}\n"
    assert check_policy(changed(verdict=word), policy(tmp_path, text)).code == 4


def test_a_missing_condition_is_not_measured(tmp_path: Path) -> None:
    assert check_policy({**GOOD, "conditions": {}}, policy(tmp_path, "conditions: {stability: {}}\n")).code == 4


def test_failure_beats_inconclusive(tmp_path: Path) -> None:
    result = changed(verdict="not met")
    result["conditions"]["stability"]["verdict"] = "inconclusive"  # type: ignore[index]
    assert check_policy(result, policy(tmp_path)).code == 3


@pytest.mark.parametrize(
    ("low", "high", "code"), [(100, None, 0), (120, 150, 0), (20, 50, 3), (50, 200, 4), (None, None, 4)]
)
def test_estimates_are_held_by_their_interval(tmp_path: Path, low: object, high: object, code: int) -> None:
    assert check_policy(changed(low=low, high=high), policy(tmp_path)).code == code


def test_a_weaker_threshold_is_not_the_measurement_asked_for(tmp_path: Path) -> None:
    found = check_policy(changed(threshold=50), policy(tmp_path))
    assert found.code == 4 and "policy.yaml:7: inconclusive" in found.text


def test_other_suite_or_few_seeds_is_inconclusive(tmp_path: Path) -> None:
    assert check_policy({**GOOD, "settings": {"suite": "custom"}}, policy(tmp_path)).code == 4
    assert check_policy(changed(seeds=[0, 1]), policy(tmp_path)).code == 4


def test_a_flag_that_is_not_allowed_fails(tmp_path: Path) -> None:
    found = check_policy({**GOOD, "flags": [{"code": "collapse"}]}, policy(tmp_path))
    assert found.code == 3 and "policy.yaml:3: fail: allowed_flags: raised: collapse" in found.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no `conditions`"),
        ("min_seeds: 3\n", "no `conditions`"),
        ("conditions: {resistence: {}}\n", ":1: unknown key 'resistence' in conditions"),
        ("conditions:\n  stability:\n    verdikt: met\n", ":3: unknown key 'verdikt'"),
        ("conditions: {stability: {verdict: inconclusive}}\n", "use met or any"),
        ("conditions: {stability: met}\n", "must hold verdict"),
        ("conditions: [\n", "not YAML"),
    ],
)
def test_bad_policies_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TiterError, match=message):
        check_policy(GOOD, policy(tmp_path, text))


def test_a_missing_policy_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="check the path"):
        check_policy(GOOD, tmp_path / "none.yaml")
