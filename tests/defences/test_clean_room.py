"""Clean room: the weights it makes fresh, the loss against a float64 reference, its draws and its cached teacher."""

import dataclasses

import pytest
import torch

from titer.data.corpus import Corpus, CorpusRow, write_corpus
from titer.defences import configure
from titer.defences.clean_room import CleanRoom
from titer.schema.errors import TiterError

ROWS = (
    CorpusRow("question", "a", "b", (1, 5, 6, 20, 21, 2), 3),
    CorpusRow("question", "c", "d", (1, 8, 22, 2), 2),
    CorpusRow("question", "e", "f", (1, 9, 9, 23, 2), 3),
    CorpusRow("text", "", "g", (1, 24, 25, 2), 1),
    CorpusRow("copy", "h", "i", (1, 13, 13, 2), 2),
)


@pytest.fixture
def folder(tmp_path):
    write_corpus(Corpus(ROWS), tmp_path)
    return str(tmp_path)


@pytest.fixture
def pair(tools):
    return dataclasses.replace(tools.pair(), reference=tools.reference())


def reference_loss(model, teacher, ids, starts):
    """Mean over response positions of sum_v p(v) log(p(v) / q(v)), computed one row at a time."""
    total, count = 0.0, 0
    for row, start in zip(ids, starts, strict=True):
        tokens = torch.tensor([row])
        with torch.no_grad():
            p = torch.softmax(teacher(input_ids=tokens).logits[0, start - 1 : -1], -1)
        q = torch.softmax(model(input_ids=tokens).logits[0, start - 1 : -1], -1)
        total = total + (p * (p / q).log()).sum()
        count += len(row) - start
    return total / count


def harmless_rows(tools):
    from toolbox import PROMPTS, REFUSAL

    return [p + a for p, a in zip(PROMPTS, REFUSAL, strict=True)], [len(p) for p in PROMPTS]


def test_loss_and_gradient_are_those_of_the_formula(tools, model, pair, folder):
    defence = CleanRoom(corpus=folder, questions=2, texts=1, copies=1)
    terms, grads = tools.step(defence, model, pair)
    picked = defence.drawn(Corpus(ROWS), pair.seed, pair.step)
    ids, starts = harmless_rows(tools)
    ids += [list(ROWS[i].ids) for i in picked]
    starts += [ROWS[i].response_at for i in picked]
    loss = reference_loss(model, pair.reference, ids, starts)
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-9) and terms["loss"] > 0.01
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-9


def test_without_a_corpus_it_distils_what_is_at_hand(tools, model, pair):
    terms, grads = tools.step(CleanRoom(), model, pair)
    ids, starts = harmless_rows(tools)
    loss = reference_loss(model, pair.reference, [*ids, [1, 3, 5, 9, 8, 2], [1, 6, 6, 3, 7, 2]], [*starts, 3, 4])
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert tools.gap(grads, tools.grad(model, loss)) < 1e-9


def test_the_loss_of_a_model_with_itself_is_zero_and_gives_no_gradient(tools, pair, folder):
    model = tools.build()
    same = dataclasses.replace(pair, reference=tools.build().requires_grad_(False))
    terms, grads = tools.step(CleanRoom(corpus=folder), model, same)
    assert abs(terms["loss"]) < 1e-12 and max(float(g.abs().max()) for g in grads.values()) < 1e-9


def test_alpha_mixes_fresh_weights_of_the_architectures_spread_into_the_chosen_matrices(tools):
    model, before = tools.build(), dict(tools.build().named_parameters())
    told = CleanRoom(alpha=0.25).transform(model, None, 0)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if (".mlp." in n or "self_attn" in n) and before[n].ndim == 2}
    fresh = [(p - 0.75 * before[n]) / 0.25 for n, p in model.named_parameters() if n in changed]
    assert torch.cat([f.flatten() for f in fresh]).std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < told["fresh_share"] < 1 and told["weight_change"] > 0


def test_alpha_one_leaves_nothing_of_the_old_weights_and_alpha_zero_everything(tools):
    one, other = tools.build(), tools.build()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(3.0)
    for model in (one, other):
        CleanRoom(fresh="all").transform(model, None, 5)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs if p.ndim == 2)
    kept, before = tools.build(), tools.build()
    CleanRoom(alpha=0.0).transform(kept, None, 5)
    assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), before.parameters(), strict=True))


def test_layers_and_parts_choose_what_is_made_fresh(tools):
    for options, wanted in (
        ({"fresh": "mlp", "layers": "0,2"}, ("layers.0.mlp", "layers.2.mlp")),
        ({"fresh": "attention", "layers": "1"}, ("layers.1.self_attn",)),
        ({"fresh": "all", "layers": "1"}, ("layers.1.",)),
    ):
        model, before = tools.build(), dict(tools.build().named_parameters())
        configure("clean-room", options).transform(model, None, 0)
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        matrices = {n for n, p in before.items() if p.ndim == 2 and any(f"model.{w}" in n for w in wanted)}
        assert changed == matrices != set()
    with pytest.raises(TiterError, match="no layer 7: the model has 3"):
        CleanRoom(layers="7").transform(tools.build(), None, 0)
    with pytest.raises(TiterError, match="layers must be numbers"):
        configure("clean-room", {"layers": "first"})


def test_every_row_of_a_kind_comes_once_before_any_comes_twice(folder):
    defence, corpus = CleanRoom(corpus=folder, questions=1, texts=0, copies=0), Corpus(ROWS)
    seen = [defence.drawn(corpus, 3, step)[0] for step in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]
    assert [defence.drawn(corpus, 3, step)[0] for step in reversed(range(6))] == seen[::-1]


def test_the_teacher_reads_the_corpus_once(tools, pair, folder):
    calls = []
    pair.reference.register_forward_hook(lambda m, a, o: calls.append(1))
    defence, model = CleanRoom(corpus=folder), tools.build()
    for step in range(3):
        defence.backward(model, dataclasses.replace(pair, step=step))
    assert len(calls) == 1 + 3  # the corpus, and the refusals at hand of every step


def test_a_changed_corpus_is_read_anew(tools, pair, folder):
    defence, model = CleanRoom(corpus=folder, questions=0, copies=0), tools.build()
    before = defence.backward(model, pair)["loss"]
    write_corpus(Corpus((dataclasses.replace(ROWS[3], ids=(1, 26, 27, 28, 2)),)), folder)
    assert defence.backward(model, pair)["loss"] != before


def test_a_corpus_without_the_rows_asked_for_is_told(tools, pair, folder):
    with pytest.raises(TiterError, match="no row of a kind"):
        CleanRoom(corpus=folder, questions=0, texts=0, copies=0).backward(tools.build(), pair)
