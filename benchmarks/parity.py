"""Measure every defence's gradient against the published algorithm and write docs/parity.md.

    python benchmarks/parity.py

Under 2 CPU minutes. The references are those of the tests (tests/defences/references.py), float64 on tiny models.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "defences"))

from references import CASES, METHODS, Method, both_gradients, compared  # noqa: E402

from titer.defences import DEFENCES  # noqa: E402
from titer.guards import GUARDS  # noqa: E402
from titer.guards.parts.antibody_alignment import AntibodyAlignment  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
HEAD = """# Parity with papers and authors' code

`python benchmarks/parity.py` writes this page. A method's docstring says which variant is its default, what
`as_published` (or, older, `legacy_loss`) reproduces, and where it still does otherwise; it is repeated below as it is.

## Measured
One optimiser step in float64 on a Llama of three layers: the gradient of titer against that of the published
algorithm, written out in plain torch in `tests/defences/references.py` with the model's own hidden states. Each number
is a relative distance, |ours - reference| / |reference|; the last column is the lowest cosine of all cases.
Llama computes its norms in float32, so terms that share a pass here and not in the reference agree to 1e-8 only.

- *full*, *LoRA*: four prompts with answers of unequal lengths, all weights or an adapter of rank 2;
- *padding*: our batches are four columns wider than the reference's;
- *one prompt*: four rows that share their prompt;
- *accumulation*: two batches of two rows are one step, with the draws of their own.
"""
ELSEWHERE = {
    "clean-room": "test_clean_room.py",
    "repnoise": "test_repnoise.py",
    "seam": "test_perturbed.py",
    "targeted-lat": "test_representation.py",
    "art": "test_representation.py",
    "sdd": "test_rewrites.py",
    "extended-refusal": "test_rewrites.py",
    "lox": "test_rewrites.py",
}


def measured(method: Method) -> str:
    """A line of the table: the method in one variant, measured in every case."""
    found = [compared(*both_gradients(method, case)) for case in CASES]
    gaps = " | ".join(f"{gap:.0e}" for _, gap in found)
    return f"| {method.label} | {gaps} | {min(cosine for cosine, _ in found):.9f} |"


def table() -> str:
    """Every measured variant, and where the others are held to theirs."""
    heads = ("variant", *CASES, "cosine")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(measured, METHODS)]
    others = "; ".join(f"{name}: `{file}`" for name, file in ELSEWHERE.items())
    return "\n".join(
        [*lines, "", f"Held to references of their own in `tests/defences/`, not measured here: {others}."]
    )


def defaults(cls: type[Any]) -> str:
    """The fields of a method with what they are unless told otherwise."""
    return ", ".join(f"`{f.name}` {f.default}" for f in fields(cls))


def section(name: str, cls: type[Any]) -> str:
    """What a method says of itself."""
    said = inspect.getdoc(cls.backward) or "" if "backward" in vars(cls) else ""
    terms = next((line for line in said.splitlines() if line.startswith("Terms: ")), "")
    told = [f"Source: {cls.source}.", terms, f"Defaults: {defaults(cls)}."]
    body = "\n".join(line for line in told if line)
    return f"### {name}\n{body}\n\n```text\n{inspect.getdoc(cls)}\n```\n"


def listing() -> str:
    """Every defence and guard: source, terms, defaults, and its docstring with the deviations."""
    guards = {**GUARDS, "antibody-alignment": AntibodyAlignment}
    parts = ["## Defences", *(section(n, c) for n, c in DEFENCES.items())]
    parts += [
        "## Guards",
        "One step of every rule and every repair are held to float64 references in `tests/guards/`.\n",
    ]
    return "\n".join([*parts, *(section(n, c) for n, c in guards.items())])


def main() -> None:
    PAGE.write_text("\n".join([HEAD, table(), "", listing()]), encoding="utf-8")


if __name__ == "__main__":
    main()
