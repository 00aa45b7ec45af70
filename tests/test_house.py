"""The house: which folder stands on which floor, that imports run downward only, and how dense a line may be.

Everything is read from the syntax tree, imports inside functions and for types included. A module whose folder is on
no floor fails; the numbers under "measures" are a ratchet: they may be lowered, never raised.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import titer

ROOT = Path(titer.__file__).parent
FLOORS = {
    "cli": 9,
    "campaigns": 8,
    "integrations": 8,
    "evaluation": 7,
    "mechanism": 7,  # beside runs in house.md; it reads where a model comes from (runs.provenance), so a floor up
    "runs": 6,
    "defences": 5,
    "guards": 5,
    "attacks": 5,
    "judges": 4,
    "training": 4,
    "models": 3,
    "report": 3,
    "conditions": 2,
    "data": 2,
    "schema": 1,
}
# what a folder may use of its own floor or above: nothing
TORCHLESS = ("schema", "conditions", "report")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of titer by its dotted name, parsed."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of titer that a module imports anywhere: `from package import module` names the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("titer"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "titer":
            for a in node.names:
                inner = f"{node.module}.{a.name}"
                yield inner if inner in modules() else str(node.module)


def unit(module: str) -> str:
    """The entry of `src/titer` that a module belongs to; "" for the package itself."""
    return [*module.split("."), ""][1]


@cache
def arrows() -> dict[str, frozenset[str]]:
    """Module -> modules it imports, itself left out."""
    return {name: frozenset(set(imported(tree)) - {name}) for name, tree in modules().items()}


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def depth(graph: dict[str, frozenset[str]]) -> int:
    """Floors of a graph without circles: the longest chain of imports."""

    @cache
    def height(node: str) -> int:
        return 1 + max((height(other) for other in graph.get(node, ()) if other != node), default=0)

    return max(height(node) for node in graph)


def test_every_entry_has_a_floor() -> None:
    entries = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()} - {"__pycache__"}
    assert entries - {"__init__"} == set(FLOORS)
    assert len(entries) == 17  # the house's fifteen, and the two rooms that were planned for later


def test_imports_run_downward() -> None:
    wrong = []
    for name, others in arrows().items():
        for other in sorted(others):
            here, there = unit(name), unit(other)
            if there and here and there != here and FLOORS[there] >= FLOORS[here]:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_circles() -> None:
    assert not circles(arrows()), "\n".join(", ".join(c) for c in circles(arrows()))
