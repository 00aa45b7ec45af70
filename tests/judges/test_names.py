"""A judge is one string: the syntax, the options, and every way to get them wrong."""

from __future__ import annotations

import pytest

from titer.judges import JUDGES, make_judge, parse
from titer.judges.classifier import ClassifierJudge
from titer.judges.endpoint import EndpointJudge
from titer.judges.exact import ExactJudge
from titer.judges.guard import GuardJudge
from titer.judges.panel import Panel
from titer.judges.parts.coherence import Coherent
from titer.schema.errors import TiterError


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("exact", "exact", {}),
        ("my.mod:Class#a=1", "my.mod:Class", {"a": "1"}),
        ("classifier:a/b", "classifier", {"model": "a/b"}),
        ("guard:/x/y#template=wildguard", "guard", {"model": "/x/y", "template": "wildguard"}),
        ("endpoint:http://h/v?api-version=2#model=m", "endpoint", {"url": "http://h/v?api-version=2", "model": "m"}),
        ("classifier:a#text=Q%3A%0A+{completion}", "classifier", {"model": "a", "text": "Q:\n+{completion}"}),
    ],
)  # fmt: skip
def test_the_syntax(name: str, kind: str, options: dict[str, str]) -> None:
    assert parse(name) == (kind, options)


def test_every_registered_judge_is_there() -> None:
    for name in JUDGES:
        assert JUDGES.find(name).__doc__


def test_judges_are_built_and_kept() -> None:
    assert make_judge("exact") == ExactJudge()
    found = make_judge("classifier:a/b#harmful=bad&batch_size=4&max_loop=0.7")
    assert isinstance(found, Coherent)
    assert found.judge == ClassifierJudge("a/b", harmful="bad", batch_size=4)
    assert found.rule.max_loop == 0.7
    assert found.name == "classifier:a/b#harmful=bad&batch_size=4&max_loop=0.7"
    assert make_judge(found.name) is found
    guard, endpoint = make_judge("guard:x/y"), make_judge("endpoint:http://localhost/v1#timeout=3")
    assert isinstance(guard, Coherent) and guard.judge == GuardJudge("x/y")
    assert isinstance(endpoint, Coherent) and endpoint.judge == EndpointJudge("http://localhost/v1", timeout=3.0)


def test_the_coherence_rule_can_be_asked_of_any_judge() -> None:
    found = make_judge("refusal#min_distinct=0.5")
    assert isinstance(found, Coherent) and found.rule.min_distinct == 0.5


def test_a_panel_is_named_by_its_members() -> None:
    found = make_judge("panel:exact|classifier:a/b#harmful=x&text={completion}")
    assert isinstance(found, Panel)
    assert [j.name for j in found.judges] == ["exact", "classifier:a/b#harmful=x&text={completion}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exakt", "unknown judge 'exakt': did you mean exact"),
        ("classifier:", "nothing after classifier"),
        ("classifier:a#harmful", "option 'harmful' has no value"),
        ("classifier:a#harmfull=1", "unknown option of judge classifier 'harmfull'"),
        ("classifier:a#batch_size=many", "batch_size"),
        ("classifier:a#max_loop=much", "max_loop"),
        ("exact#x=1", "unknown option of judge exact"),
        ("panel:exact", "needs two different judges"),
        ("panel:exact|exact", "needs two different judges"),
        ("no.such:Judge", "cannot be imported"),
    ],
)
def test_what_is_wrong_is_one_line(name: str, message: str) -> None:
    with pytest.raises(TiterError, match=message) as caught:
        make_judge(name)
    assert "\n" not in str(caught.value)
