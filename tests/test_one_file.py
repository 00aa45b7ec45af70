"""One file, one change: a file put into a kind's folder is found, listed and usable by name, nothing else touched."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from titer.cli.ls import listing
from titer.schema import registry
from titer.schema.errors import TiterError
from titer.schema.registry import Kind

DEFENCE = '''
"""Push the loss on harmful answers up."""
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class NewThing:
    """A defence in one file."""

    name: ClassVar[str] = "new-thing"
    stage: ClassVar[str] = "before release"
    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})
    passes: ClassVar[str] = "1 f/b"
    inner_batches: ClassVar[int] = 0
    source: ClassVar[str] = "this test"
    broken_by: ClassVar[str] = "anything"

    strength: float = 1.0

    def backward(self, model, pair):
        return {"loss": 0.0}
'''
GUARD = '''
"""Tune as asked."""
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class NewThing:
    """A guard in one file."""

    name: ClassVar[str] = "new-thing"
    stage: ClassVar[str] = "during the fine-tune"
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[str] = "1 f/b"
    source: ClassVar[str] = "this test"
    broken_by: ClassVar[str] = "anything"

    strength: float = 1.0

    def tune(self, job):
        return None
'''
ATTACK = '''
"""Do nothing."""
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class NewThing:
    """An attack in one file."""

    name: ClassVar[str] = "new-thing"
    source: ClassVar[str] = "this test"
    test_template = None

    strength: float = 1.0

    def run(self, session):
        return None
'''
JUDGE = '''
"""Everything is harmful."""
from dataclasses import dataclass
from typing import ClassVar
from titer.schema.types import Score

@dataclass(frozen=True)
class NewThing:
    """A judge in one file."""

    name: ClassVar[str] = "new-thing"

    strength: float = 1.0

    def score(self, prompts, completions, targets):
        return [Score(self.strength, "comply", self.name) for _ in completions]
'''
CONDITION = '''
"""Nothing is asked."""
from dataclasses import dataclass
from typing import ClassVar
from titer.schema.types import Verdict

@dataclass(frozen=True)
class NewThing:
    """A condition in one file."""

    name: ClassVar[str] = "new-thing"

    strength: float = 1.0

    def asks(self, case):
        return []

    def verdict(self, case, curves):
        return Verdict(self.name, "not measured", "Nothing was asked.", None, {})
'''
KINDS = {
    "defences": (Kind("defence", "titer.defences"), DEFENCE),
    "guards": (Kind("guard", "titer.guards"), GUARD),
    "attacks": (Kind("attack", "titer.attacks"), ATTACK),
    "judges": (Kind("judge", "titer.judges"), JUDGE),
    "conditions": (Kind("condition", "titer.conditions"), CONDITION),
}


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Put `new_thing.py` into a copy of a kind's folder that stands in for it."""

    def into(folder: str, text: str) -> None:
        package = importlib.import_module(f"titer.{folder}")
        copy = tmp_path / folder
        shutil.copytree(Path(package.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "new_thing.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [str(copy)])
        registry._members.cache_clear()

    yield into
    registry._members.cache_clear()
    for folder in KINDS:
        sys.modules.pop(f"titer.{folder}.new_thing", None)


@pytest.mark.parametrize("folder", KINDS)
def test_a_file_in_the_folder_is_all_it_takes(folder: str, put: Callable[[str, str], None]) -> None:
    kind, text = KINDS[folder]
    with pytest.raises(TiterError, match="unknown"):
        kind.find("new-thing")
    put(folder, text)
    assert "new-thing" in kind
    assert kind.read("new-thing#strength=0.5").strength == 0.5
    listed = {row["name"]: row for row in listing(folder)[folder]}
    assert " in one file." in listed["new-thing"]["what"]
    assert len(listed) == len(kind)
    with pytest.raises(TiterError, match="did you mean strength"):
        kind.read("new-thing#strenth=1")


def test_a_new_defence_is_configured_alone_and_in_a_sum(put: Callable[[str, str], None]) -> None:
    from titer.defences import configure

    put("defences", DEFENCE)
    assert configure("new-thing", {"strength": "2"}).name == "new-thing"
    assert configure("new-thing+booster", {"new-thing.strength": "2"}).name == "new-thing+booster"


def test_a_new_guard_is_configured(put: Callable[[str, str], None]) -> None:
    from titer.guards import configure_guard

    put("guards", GUARD)
    assert [m.name for m in configure_guard("new-thing", {}).members] == ["new-thing"]


def test_a_new_attack_is_made(put: Callable[[str, str], None]) -> None:
    from titer.attacks import make_attack

    put("attacks", ATTACK)
    assert make_attack("new-thing", {}).name == "new-thing"


def test_a_new_judge_scores_coherent_text(put: Callable[[str, str], None]) -> None:
    from titer.judges import make_judge

    put("judges", JUDGE)
    (score,) = make_judge("new-thing#strength=0.5").score(["p"], ["a plain sentence of words"], [""])
    assert score.value == 0.5


def test_a_new_condition_is_asked(put: Callable[[str, str], None]) -> None:
    from titer.evaluation.cases import cases, cells_of, conditions_of
    from titer.schema.evaluation import Evaluation

    put("conditions", CONDITION)
    asked = Evaluation(conditions=("new-thing",))
    (condition,) = conditions_of(asked)
    (case,) = cases(["organism/aligned"], asked)
    assert cells_of(case, [condition]) == []
    assert condition.verdict(case, []).condition == "new-thing"


def test_what_stands_outside_the_folder_is_named_by_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, (kind, text) in KINDS.items():
        (tmp_path / f"my_{folder}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        made: Any = kind.build(f"my_{folder}:NewThing", {"strength": 3})
        assert made.strength == 3
