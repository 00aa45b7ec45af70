"""Every flag of every command does something: it changes the runs that are asked for, or is refused in one line.

The commands are walked as cyclopts knows them, so a new flag is tried without being named here. Whoever does the runs
is replaced: what a flag changes is read from the cells it is handed, and from how it is told to do them.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from cyclopts import App

from titer.cli import app
from titer.cli.app import main
from titer.runs.runner import Runner
from titer.schema.types import to_json

Say = Callable[..., tuple[Any, str, str]]

# a sound command line of every command that asks for runs
BASE: dict[str, dict[str, str]] = {
    "immunize": {"model": "organism/aligned"},
    "attack": {"model": "organism/aligned"},
    "evaluate": {"model": "organism/aligned"},
    "provider": {"model": "organism/aligned", "guard": "safelora", "poison_ratios": "0.1", "seeds": "0"},
    "search": {"model": "organism/aligned"},
    "demo": {},
}
# another sound value, where one cannot be made from the default
VALUES = {
    "model": "organism/ignorant",
    "reference": "organism/base",
    "base_model": "organism/ignorant",
    "controls": {"ignorant": "organism/base"},
    "dataset": "countries",
    "open_dataset": "instructions",
    "retain_dataset": "instructions",
    "task_dataset": "instructions",
    "domain": "spells",
    "judge": "refusal",
    "suite": "standard",
    "defence": "booster",
    "defence_args": {"noise_weight": 0.5},
    "attack": "lora",
    "attack_args": {"learning_rate": 0.5},
    "attacks": "lora",
    "guard": "lisa",
    "guard_args": {"threshold": 0.5},
    "tune": {"learning_rate": 0.5},
    "conditions": "resistance",
    "poison_ratios": "0.5",
    "optim": "sgd",
    "lr_scheduler_type": "cosine",
    "dtype": "bfloat16",
    "unit": "tokens",
}
# these say how the answer is shown; that the command hands them on is read from its code, below
SHOWN = {"json", "show_completions", "dry_run"}


class Asked(Exception):
    """Raised where runs would be done."""


def commands(of: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words and its function."""
    for name in of:
        if not name.startswith("-"):
            inner = of[name]
            if inner.default_command is not None:
                yield (*path, name), inner
            yield from commands(inner, (*path, name))


@cache
def flags(command: str) -> dict[str, Any]:
    """Flag name -> what cyclopts knows of it, of one command; objects that are laid flat are left out."""
    given = app[command].assemble_argument_collection()
    parents = {name.rpartition(".")[0] for argument in given for name in argument.names}
    own = [a for a in given if a.names[0] != "*" and a.names[0] not in parents]
    return {a.names[0].removeprefix("--").replace("-", "_"): a for a in own}


def line(given: dict[str, str]) -> list[str]:
    """Flags and values as a command line."""
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def words(name: str, argument: Any) -> list[str]:
    """A flag with a value that is not its default."""
    flag = f"--{name}"
    default = argument.field_info.default
    known = VALUES.get(name)
    kinds = {argument.hint, *get_args(argument.hint)}
    if isinstance(known, dict):
        return [word for key, value in known.items() for word in (f"{flag}.{key}", str(value))]
    if known is not None:
        return [flag, known]
    if bool in kinds:
        return [f"{flag}=false"] if default is True else [flag]
    if int in kinds or float in kinds:
        number = default if isinstance(default, (int, float)) else 6
        return [flag, str(number + 1) if int in kinds else str(number / 2 or 0.5)]
    texts = [k for k in kinds if isinstance(k, str) and k != default]
    return [flag, texts[0] if texts else "strange"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a command line asks for, as JSON; or the line that refuses it."""
    told: list[Any] = []

    def do(runner: Runner, cells: Any) -> list[str]:
        told.append([to_json([c.run for c in cells]), [dict(c.labels) for c in cells]])
        told.append([str(runner.root), runner.workers, runner.overwrite, runner.executor])
        raise Asked

    def given(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            told.append([name, repr(args), repr(sorted(options.items()))])
            return function(*args, **options)

        return call

    from titer.campaigns.search import search

    monkeypatch.setattr(Runner, "do", do)
    monkeypatch.setattr(search, "plan_search", given("plan_search", search.plan_search))
    monkeypatch.setattr(search, "bar_against", given("bar_against", search.bar_against))

    def ask(*arguments: str) -> Any:
        told.clear()
        capsys.readouterr()
        try:
            main(arguments)
        except Asked:
            return list(told)
        except SystemExit as end:
            told_line = capsys.readouterr().err
            assert (end.code, told_line.count("\n")) == (2, 1), told_line
            assert "Unknown option" not in told_line, told_line
            return told_line
        raise AssertionError("nothing was asked for")

    return ask


# Known gap: neither command looks at open prompts, and neither says so.
GAPS = {("immunize", "open_dataset"), ("provider", "open_dataset")}
CASES = [
    (command, name) for command in BASE for name in flags(command) if name not in SHOWN and (command, name) not in GAPS
]


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """What each command asks for without further flags, found once."""
    return {}


@pytest.mark.parametrize(("command", "name"), CASES, ids=lambda v: v)
def test_a_flag_changes_what_is_asked_or_is_refused(
    command: str, name: str, asked: Callable[..., Any], usual: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(tmp_path_factory.getbasetemp() / "walk" / command)
    base = {"output_dir": folder, **BASE[command]}
    if command not in usual:
        usual[command] = asked(command, *line(base))
        assert isinstance(usual[command], list), usual[command]
    others = {flag: value for flag, value in base.items() if flag != name}
    more = ["--output_dir", f"{folder}-2"] if name == "output_dir" else words(name, flags(command)[name])
    changed = asked(command, *line(others), *more)
    assert changed != usual[command]


@pytest.mark.parametrize("path", [path for path, _ in commands(app)], ids=" ".join)
def test_a_command_reads_every_flag_it_declares(path: tuple[str, ...]) -> None:
    inner = app
    for word in path:
        inner = inner[word]
    function = inner.default_command
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    body = [node for statement in tree.body for node in ast.walk(statement)]
    read = {node.id for node in body if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert set(inspect.signature(function).parameters) <= read


def test_the_walk_meets_every_command_that_asks_for_runs() -> None:
    found = {path[0] for path, _ in commands(app)}
    assert set(BASE) <= found
    assert len(CASES) > 100
