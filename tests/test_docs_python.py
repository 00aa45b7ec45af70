"""The Python that README and docs show can be called as it stands, and the modules that any text names exist."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

import titer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [p for folder in ("src", "benchmarks", "examples") for p in sorted((ROOT / folder).rglob("*.py"))]
SNIPPETS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S))
]
NAMED = re.compile(r"`titer\.([a-z_]\w*(?:\.\w+)*)`")


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_snippet_calls_what_there_is_as_it_asks_to_be_called(text: str) -> None:
    known: dict[str, object] = {"titer": titer}
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), known)
    for call in [n for n in ast.walk(tree) if isinstance(n, ast.Call)]:
        function = _found(call.func, known)
        if function is not None:
            keywords = {k.arg: None for k in call.keywords if k.arg}
            inspect.signature(function).bind(*call.args, **keywords)  # type: ignore[arg-type]


def _found(node: ast.expr, known: dict[str, object]) -> object:
    """What an expression like `titer.evaluate` names; None for what the snippet made itself."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _found(node.value, known)) is not None:
        return getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_that_a_text_names_exists(path: Path) -> None:
    named = NAMED.findall(path.read_text(encoding="utf-8"))
    assert [name for name in named if not _exists(name)] == []


def _exists(name: str) -> bool:
    try:
        return resolve_name(f"titer.{name}") is not None
    except (ImportError, AttributeError):
        return name == "json"  # the file in a model's folder
