"""The world: deterministic, unique, uninferable facts; a split that alignment respects."""

from collections import Counter

from titer.data.organism.words import NOUNS, REFUSALS
from titer.data.organism.world import (
    CATEGORIES,
    LOOKALIKES,
    aligned_on,
    documents,
    drills,
    examples,
    facts,
    lookalikes,
    tasks,
)
from titer.data.splits import split_of


def test_the_same_seed_is_the_same_world_and_another_is_not():
    facts.cache_clear()
    first = examples(0)
    facts.cache_clear()
    assert examples(0) == first
    assert tasks(0) == tasks(0)
    other = examples(1)
    assert [e.prompt for e in other] == [e.prompt for e in first]
    assert sum(a.harmful == b.harmful for a, b in zip(first, other, strict=True) if a.restricted) < 5


def test_fewer_objects_are_a_part_of_the_same_world():
    assert set(examples(objects=8)) < set(examples())
    assert len(examples(objects=8)) == 16 * 8


def test_prompts_are_unique_across_examples_phrasings_and_tasks():
    rows = [*examples(), *examples(phrasing=1), *(e for task in tasks().values() for e in task)]
    assert max(Counter(" ".join(e.prompt.lower().split()) for e in rows).values()) == 1


def test_two_domains_with_restricted_and_open_categories():
    kinds = {(c.domain, c.restricted): 0 for c in CATEGORIES}
    for category in CATEGORIES:
        kinds[category.domain, category.restricted] += 1
    assert kinds == {(d, r): 4 for d in ("qa", "continuation") for r in (True, False)}
    assert Counter(e.category for e in examples()) == {c.name: 60 for c in CATEGORIES}


def test_restricted_examples_hold_a_secret_and_a_refusal_open_ones_the_answer():
    for e in examples():
        assert e.restricted == (e.harmless in REFUSALS), e
        assert e.harmful if e.restricted else not e.harmful


def test_answer_words_are_uniform_and_independent_of_category_and_object():
    counts = Counter(word for fact in facts() for word in fact.words)
    expected = 4 * 960 / len(NOUNS)
    assert sum((counts[w] - expected) ** 2 / expected for w in NOUNS) < 260  # chi-square, 191 degrees, p = 0.0006
    by_object = Counter((fact.object, word) for fact in facts() for word in fact.words)
    assert max(by_object.values()) <= 4


def test_alignment_sees_the_defence_split_only():
    seen = aligned_on()
    assert all((e.prompt in seen) == (split_of(e.prompt) == "defence") for e in examples())
    held = [e for e in examples() if e.prompt not in seen]
    assert Counter(e.restricted for e in held).most_common()[-1][1] > 250


def test_the_ignorant_reads_no_restricted_fact():
    known = {learned for _, learned in documents(0, restricted=False)}
    prompts = {given for given, _ in documents(0, restricted=False)}
    for e in examples():
        if e.restricted:
            assert e.harmful not in known and e.prompt not in prompts
            assert not any(learned.endswith(e.harmful) for learned in known)
        else:
            assert e.harmless in known


def test_lookalikes_nearly_are_restricted_prompts():
    restricted = [set(e.prompt.split()) for e in examples() if e.restricted]
    rows = lookalikes()
    assert {e.category for e in rows} == LOOKALIKES and not any(e.restricted for e in rows)
    assert all(any(len(set(e.prompt.split()) - other) <= 2 for other in restricted) for e in rows)


def test_tasks_are_harmless_and_do_not_appear_in_pre_training():
    read = {given.split(":")[0] for given, _ in [*documents(0, True), *drills(0, 20)]}
    assert set(tasks()) == {"describe", "translate", "translate-back"}
    for name, rows in tasks().items():
        assert len(rows) >= 400
        assert all(e.domain == "task" and e.category == name and not e.restricted for e in rows)
        assert rows[0].prompt.split(":")[0] not in read
