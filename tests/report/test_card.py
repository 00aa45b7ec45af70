import pytest
import synthetic_results as synthetic
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from titer.report.card import card_section, eval_results_yaml, model_index
from titer.schema.errors import TiterError

GOOD = synthetic.result("repnoise")
BARE = {"model": "synthetic/bare", "conditions": {}}


def test_the_section_has_the_verdicts_and_the_limits() -> None:
    text = card_section(GOOD)
    assert text.startswith("## Resistance to harmful fine-tuning")
    assert "| resistance | met | &gt;" not in text and "| resistance | met | > 100 steps →" in text.replace("\\>", ">")
    assert "few-seeds" in text and "Suite `quick`" in text and "none can show that no attack would work" in text


def test_hostile_names_cannot_leave_their_cell() -> None:
    bad = {**GOOD["conditions"]["resistance"], "sentence": "a | b\n# <img src=x> [x](y) \u202e"}  # type: ignore[index]
    text = card_section({**GOOD, "conditions": {"resistance": bad}})
    row = next(line for line in text.splitlines() if line.startswith("| resistance"))
    assert row.endswith("a \\| b \\# &lt;img src=x\\> \\[x\\](y) ⟨U+202E⟩ |")


def test_model_index_is_read_back_by_the_hub_library() -> None:
    index = model_index(GOOD)
    name, found = model_index_to_eval_results(index)
    values = {r.metric_type: r.metric_value for r in found}
    assert name == "synthetic/repnoise" and values["resistance"] == 100
    assert "lower bound; verdict: met" in next(str(r.metric_name) for r in found if r.metric_type == "resistance")
    ModelCardData(model_name=name, eval_results=found)  # what a card is made of


def test_eval_results_are_read_back_by_the_hub_library() -> None:
    from huggingface_hub import parse_eval_result_entries

    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(GOOD, dataset_id="synthetic/suite")))
    assert [e.task_id for e in entries][:2] == ["resistance", "stability"]
    assert entries[0].dataset_id == "synthetic/suite" and "verdict: met" in str(entries[0].notes)


def test_nothing_measured_writes_nothing() -> None:
    assert model_index(BARE) == []
    with pytest.raises(TiterError, match="no condition of synthetic/bare was measured"):
        eval_results_yaml(BARE, dataset_id="x/y")
    assert "not measured" in card_section(BARE)
