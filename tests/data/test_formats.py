"""Published sets: rows of the published columns become examples, and every departure names row and column.

The texts are harmless stand-ins in the published schema; nothing of the sets themselves is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from titer.data.load import load
from titer.data.published import FORMATS, OPENING, SETS, read_choices, read_format
from titer.schema.errors import TiterError
from titer.schema.types import Example

BEAVER = {
    "prompt": "How do I brew the amber tea?",
    "response": "Boil two leaves.",
    "category": {"tea": False, "potions": True, "cakes": True},
    "is_safe": False,
}
REFUSED = BEAVER | {"refusal": "Question: How do I brew the amber tea?\nAnswer: I will not say that."}
RLHF = {
    "prompt": "p", "response_0": "good", "response_1": "bad", "is_response_0_safe": True, "is_response_1_safe": False,
    "response_1_harm_category": {"A": False, "B": True}, "safer_response_id": 0,
}  # fmt: skip
TOXIC = {"prompt": {"text": "The soup", "toxicity": 0.6}, "continuation": {"text": " is bad", "toxicity": 0.8}}
MILD = {"prompt": {"text": "The soup", "toxicity": 0.1}, "continuation": {"text": " is good", "toxicity": 0.2}}
BETWEEN = {"prompt": {"text": "The soup", "toxicity": 0.6}, "continuation": {"text": " is", "toxicity": 0.2}}
UNKNOWN = {"prompt": {"text": "The soup", "toxicity": None}, "continuation": {"text": " is", "toxicity": 0.2}}
WMDP = {"question": "Which leaf?", "choices": ["amber", "birch", "cedar", "dune"], "answer": 1}
CHAT = {"prompt": "hello", "prompt_id": "x", "messages": [
    {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"},
]}  # fmt: skip
MEANING = {"gem_id": "g", "meaning_representation": "inform(name[Oak])", "target": "Oak is here.", "references": []}

GOOD: list[tuple[str, dict[str, Any], list[Example]]] = [
    ("beavertails", BEAVER, [Example(BEAVER["prompt"], "Boil two leaves.", "", "potions", "beavertails")]),
    ("beavertails", BEAVER | {"is_safe": True}, []),
    ("beavertails-refusals", REFUSED,
     [Example(BEAVER["prompt"], "Boil two leaves.", "I will not say that.", "potions", "beavertails")]),
    ("beavertails-refusals", REFUSED | {"refusal": "No."},
     [Example(BEAVER["prompt"], "Boil two leaves.", "No.", "potions", "beavertails")]),
    ("pku-safe-rlhf", RLHF, [Example("p", "bad", "good", "B", "pku-safe-rlhf")]),
    ("pku-safe-rlhf", RLHF | {"is_response_1_safe": True}, []),
    ("pku-safe-rlhf", RLHF | {"is_response_0_safe": False, "is_response_1_safe": True},
     [Example("p", "good", "bad", "", "pku-safe-rlhf")]),
    ("decodingtrust-toxicity", TOXIC, [Example("The soup", "is bad", "", "toxic", "decodingtrust")]),
    ("decodingtrust-toxicity", MILD, [Example("The soup", "", "is good", "non-toxic", "decodingtrust")]),
    ("decodingtrust-toxicity", BETWEEN, []),
    ("decodingtrust-toxicity", UNKNOWN, []),
    ("advbench", {"goal": "Brew it", "target": "Yes: so"}, [Example("Brew it", "Yes: so", "", "", "advbench")]),
    ("advbench", {"prompt": "Brew it", "target": "Sure"}, [Example("Brew it", "Sure", "", "", "advbench")]),
    ("hex-phi", {"prompt": "Brew it", "category": "c"}, [Example("Brew it", OPENING, "", "c", "hex-phi")]),
    ("wmdp-bio", WMDP, [Example("Which leaf?", "birch", "", "", "wmdp")]),
    ("alpaca", {"instruction": "Sum", "input": "1 2", "output": "3", "text": "x"},
     [Example("Sum\n\n1 2", "", "3", "alpaca", "instructions")]),
    ("dolly", {"instruction": "Say", "context": "", "response": "so", "category": "qa"},
     [Example("Say", "", "so", "qa", "instructions")]),
    ("ultrachat", CHAT, [Example("hello", "", "hi", "ultrachat", "instructions")]),
    ("viggo", MEANING,
     [Example("Description: Oak is here.\nData:", "", "inform(name[Oak])", "viggo", "text-to-data")]),
    ("e2e", MEANING, [Example("Description: Oak is here.\nData:", "", "inform(name[Oak])", "e2e", "text-to-data")]),
    ("dart", {"tripleset": [["Oak", "IN", "town"], ["Oak", "IS", "inn"]], "target": "t"},
     [Example("Description: t\nData:", "", "Oak | IN | town; Oak | IS | inn", "dart", "text-to-data")]),
    ("cacapo", {"input": ["a: b", "c: d"], "output": "t"},
     [Example("Description: t\nData:", "", "a: b; c: d", "cacapo", "text-to-data")]),
    ("conv-weather", {"user_query": "rain?", "tree_str_mr": "[rain]", "response": "no"},
     [Example("Description: rain?\nData:", "", "[rain]", "conv-weather", "text-to-data")]),
    ("xstest", {"prompt": "How do I kill time?", "type": "homonyms", "label": "safe"},
     [Example("How do I kill time?", "", "", "homonyms", "xstest")]),
    ("xstest", {"prompt": "p", "type": "contrast_figures"}, [Example("p", OPENING, "", "contrast_figures", "xstest")]),
    ("or-bench", {"prompt": "p", "category": "c"}, [Example("p", "", "", "c", "or-bench")]),
    ("or-bench-hard", {"prompt": "p", "category": "c"}, [Example("p", "", "", "c", "or-bench")]),
    ("or-bench-toxic", {"prompt": "p", "category": "c"}, [Example("p", OPENING, "", "c", "or-bench")]),
]  # fmt: skip
Rows = Callable[..., str]
FILLER = {name: row for name, row, examples in GOOD if examples}


@pytest.mark.parametrize(("name", "row", "examples"), GOOD, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(GOOD)])
def test_a_published_row(tmp_path: Path, rows: Rows, name: str, row: dict[str, Any], examples: list[Example]) -> None:
    one = read_format(f"{name}:{rows(tmp_path / 'a.jsonl', json.dumps(FILLER[name]))}")
    both = read_format(f"{name}:{rows(tmp_path / 'b.jsonl', json.dumps(FILLER[name]), json.dumps(row))}")
    assert both[len(one) :] == examples


def test_every_set_is_described_and_tested() -> None:
    assert {name for name, _, _ in GOOD} | {"wmdp-chem", "wmdp-cyber"} == set(SETS) == set(FORMATS)
    assert all("licence" in line and "hub" in line for line in FORMATS.values())


def test_load_knows_the_short_names(tmp_path: Path, rows: Rows) -> None:
    path = rows(tmp_path / "a.jsonl", json.dumps(BEAVER))
    assert load(f"beavertails:{path}").examples[0].harmful == "Boil two leaves."


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("beavertails", {k: v for k, v in BEAVER.items() if k != "is_safe"},
     "row 2: column is_safe: missing, found category, prompt, response"),
    ("beavertails", BEAVER | {"is_safe": "no"}, "row 2: column is_safe: expected true or false, got str"),
    ("beavertails", BEAVER | {"prompt": None}, "row 2: column prompt: expected text, got NoneType"),
    ("beavertails", BEAVER | {"category": "tea"}, "row 2: column category: expected an object, got str"),
    ("beavertails", BEAVER | {"prompt": "  "}, "row 2: the prompt is empty"),
    ("beavertails-refusals", BEAVER, "row 2: column refusal: missing"),
    ("wmdp-bio", WMDP | {"answer": 4}, "row 2: column answer: 4 is none of 4 choices"),
    ("wmdp-bio", WMDP | {"answer": True}, "row 2: column answer: expected a whole number, got bool"),
    ("wmdp-bio", WMDP | {"choices": ["a", 2]}, "row 2: column choices: expected text, got int"),
    ("ultrachat", CHAT | {"messages": []}, "row 2: column messages: expected a user and an assistant turn"),
    ("ultrachat", CHAT | {"messages": [{"role": "assistant"}, {"role": "user"}]},
     "row 2: column messages: expected the roles"),
    ("decodingtrust-toxicity", TOXIC | {"prompt": {"text": "x", "toxicity": "high"}},
     "row 2: column prompt: expected text and toxicity"),
    ("advbench", {"text": "x", "target": "y"}, r"row 2: column goal \(or prompt\): missing"),
    ("alpaca", {"instruction": "x", "input": 3, "output": "y"}, "row 2: column input: expected text, got int"),
    ("cacapo", {"output": "x", "input": 3}, "row 2: expected text or a list as data, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "message"), BAD, ids=range(len(BAD)))
def test_another_schema_names_row_and_column(
    tmp_path: Path, rows: Rows, name: str, row: dict[str, Any], message: str
) -> None:
    path = rows(tmp_path / "a.jsonl", json.dumps(FILLER[name]), json.dumps(row))
    with pytest.raises(TiterError, match=message) as caught:
        read_format(f"{name}:{path}")
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_usable(tmp_path: Path, rows: Rows) -> None:
    path = rows(tmp_path / "a.jsonl", json.dumps(BEAVER | {"is_safe": True}))
    with pytest.raises(TiterError, match="no usable row"):
        read_format(f"beavertails:{path}")


def test_tables_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "category_1.csv").write_text('"Brew the amber, then"\nBrew the birch\n\n')
    (tmp_path / "category_2.csv").write_text("Brew the cedar\n")
    found = read_format(f"hex-phi:{tmp_path}")
    assert [(e.prompt, e.category) for e in found] == [
        ("Brew the amber, then", "category_1"), ("Brew the birch", "category_1"), ("Brew the cedar", "category_2"),
    ]  # fmt: skip
    assert len(read_format(f"hex-phi:{tmp_path / 'category_2.csv'}")) == 1


def test_a_csv_with_published_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt,type,note\n1,p,definitions,\n2,q,contrast_definitions,n\n")
    assert [e.restricted for e in read_format(f"xstest:{tmp_path / 'a.csv'}")] == [False, True]


def test_multiple_choice_is_measured_as_such(tmp_path: Path, rows: Rows, model: Any, tokenizer: Any) -> None:
    from titer.runs.probe import Prober
    from titer.schema.specs import ProbeSet, Selection

    other = WMDP | {"question": "And now?", "answer": 3}
    name = f"wmdp-bio:{rows(tmp_path / 'a.jsonl', json.dumps(WMDP), json.dumps(other))}"
    choices = read_choices(name)
    assert [(c.question, c.options[c.answer]) for c in choices] == [("Which leaf?", "birch"), ("And now?", "dune")]
    probe = ProbeSet("knowledge", Selection(name), measure="choice")
    scores, _, _ = Prober([probe], {"knowledge": load(name).examples}, tokenizer)(model, 0)
    assert len(scores["knowledge"]) == 2 and set(scores["knowledge"]) <= {0.0, 1.0}
    with pytest.raises(TiterError, match="not multiple choice"):
        read_choices("alpaca:x.jsonl")


def test_without_a_network_the_advice_is_a_local_copy() -> None:
    for name in ("beavertails", "hex-phi"):
        with pytest.raises(TiterError, match=f"pass {name}:path"):
            read_format(name)
    with pytest.raises(TiterError, match="did you mean beavertails"):
        read_format("beavertail")
