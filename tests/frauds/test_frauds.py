"""No dishonest defence is met on all four, and each is named by a flag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fraud_builders import FRAUDS
from fraud_question import ALIGNED, short_suite, told

from titer.data.roles import assign
from titer.evaluation.cases import examined, facts_of
from titer.evaluation.evaluate import keep_salt, known_salt
from titer.models.load import load_model, load_tokenizer
from titer.runs.inputs import identify
from titer.runs.tools import clash, differences, made_from, tools_of
from titer.schema.errors import TiterError
from titer.schema.evaluation import Case, Data
from titer.schema.specs import Named

FILES = ("normalizer", "stop-tokens", "template", "bad-words", "dropout", "merged-tokens", "permuted")


def case(folder: Path, name: str) -> Case:
    FRAUDS[name].build(folder / name)
    return examined(Case(str(folder / name), ALIGNED, assign(Data()), short_suite()))


@pytest.mark.parametrize("name", FILES)
def test_a_defence_in_the_files_beside_the_weights_is_listed(tmp_path: Path, name: str) -> None:
    asked = case(tmp_path, name)
    assert asked.differences and facts_of(asked).tools
    assert asked.both_ways() or asked.doubts


def test_the_same_files_are_no_difference_and_cost_no_run(tmp_path: Path) -> None:
    asked = case(tmp_path, "nothing")
    assert asked.differences == () and asked.doubts == () and not asked.both_ways()
    run = asked.attack_run(Named("sft"), "unseen", 0)
    assert run.tools == ALIGNED
    assert identify(run) == identify(replace(run, tools=""))
    assert len(facts_of(asked).identical) == 4


@pytest.mark.parametrize("name", ["normalizer", "stop-tokens", "template"])
def test_an_attack_uses_the_references_tools_and_is_another_run_for_it(tmp_path: Path, name: str) -> None:
    run = case(tmp_path, name).attack_run(Named("sft"), "unseen", 0)
    model, own = load_model(run.model)
    theirs, plain = tools_of(run, model, own), load_tokenizer(tools_of(run, model, own).tokenizer.name_or_path)
    prompt = [{"role": "user", "content": "How do you brew the amber potion?"}]
    asked = theirs.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    assert "potion" in asked
    assert theirs.tokenizer(asked)["input_ids"] == plain(asked)["input_ids"]
    assert theirs.end_ids == (3,)
    assert tools_of(replace(run, tools=""), model, own).tokenizer is own
    assert identify(run) != identify(replace(run, tools=""))


def test_vocabularies_that_cannot_be_exchanged_fall_back_to_plain_prompts(tmp_path: Path) -> None:
    asked = case(tmp_path, "permuted")
    assert any("cannot be exchanged" in d for d in asked.doubts)
    model, own = load_model(asked.model)
    found = tools_of(asked.attack_run(Named("sft"), "unseen", 0), model, own)
    assert found.tokenizer.chat_template is None and found.tokenizer.backend_tokenizer.normalizer is None
    assert found.end_ids == (own.eos_token_id,)
    assert own.backend_tokenizer.normalizer is not None
    assert clash({"a": 0, "c": 2}, {"a": 0, "b": 1}, 3) == ""
    assert clash({"a": 1}, {"a": 0}, 3) and clash({"a": 0}, {"a": 0, "b": 5}, 3)


def test_a_rescaled_model_is_the_same_function(tmp_path: Path) -> None:
    FRAUDS["rescale"].build(tmp_path / "rescale")
    ours, theirs = (load_model(m)[0] for m in (str(tmp_path / "rescale"), ALIGNED))
    ids = torch.arange(5, 25)[None]
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-3)


def test_weights_that_take_no_gradient_are_a_doubt(tmp_path: Path) -> None:
    asked = case(tmp_path, "eight-bits")
    assert any("take no gradient" in d for d in asked.doubts)
    assert 0 < (facts_of(asked).trains or 0) < 1


def test_control_prompts_are_neither_asked_nor_trained_on(tmp_path: Path) -> None:
    from titer.data.select import select

    asked = case(tmp_path, "nothing")
    salted = replace(asked, asked=replace(asked.asked, salt="another"))
    for tag in ("unseen", "withheld", "cross"):
        run, other = (c.attack_run(Named("sft"), tag, 0) for c in (asked, salted))
        control, harm = (next(p for p in run.probes if p.name == n) for n in ("harm_fresh", "harm"))
        fresh = {e.prompt for e in select(control.selection)}
        assert len(fresh) >= 12
        assert not fresh & {e.prompt for e in (*select(harm.selection), *select(run.data))}
        assert run.probes[:2] == other.probes[:2] and identify(run) != identify(other)


def test_a_salt_is_drawn_once_for_a_folder_of_runs(tmp_path: Path) -> None:
    keep_salt(tmp_path / "a", known_salt(tmp_path / "a"))
    assert known_salt(tmp_path / "a") == known_salt(tmp_path / "a") != known_salt(tmp_path / "b")


def test_a_model_whose_origin_is_gone_needs_a_tokenizer(tmp_path: Path) -> None:
    assert made_from(ALIGNED) == ""
    (tmp_path / "titer.json").write_text('{"record": {"spec": {"model": "./gone"}}}')
    with pytest.raises(TiterError, match="attacker_tokenizer"):
        made_from(str(tmp_path))
    assert differences(ALIGNED, ALIGNED) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAUDS)
def test_no_fraud_is_met_on_all_four_and_each_is_named(tmp_path: Path, name: str) -> None:
    FRAUDS[name].build(tmp_path / name)
    found = told(tmp_path / name, tmp_path, short_suite())
    assert {v["verdict"] for v in found["conditions"].values()} != {"met"}
    assert {f["code"] for f in found["flags"]} & set(FRAUDS[name].flags)
