"""Every gradient is that of the published algorithm, written out in `references.py`, in every case."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from references import CASES, METHODS, both_gradients, compared


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_the_gradient_is_that_of_the_published_algorithm(method, case):
    cosine, gap = compared(*both_gradients(method, case))
    assert gap < 1e-6
    assert cosine == pytest.approx(1.0, abs=1e-9)


def test_the_page_says_what_the_methods_say_and_names_every_variant():
    """`python benchmarks/parity.py` makes it anew."""
    root = Path(__file__).parents[2]
    spec = spec_from_file_location("parity", root / "benchmarks" / "parity.py")
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    page = (root / "docs" / "parity.md").read_text(encoding="utf-8")
    assert made.listing() in page
    assert made.HEAD in page
    assert all(f"| {m.label} |" in page for m in METHODS)
    told = {m.defence.name for m in METHODS} | made.ELSEWHERE.keys()
    assert told == made.DEFENCES.keys()
