"""Models defended on different data, evaluated in one call: each held to its own data, all under the same columns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from titer.data.roles import assign, digest
from titer.data.select import select
from titer.evaluation import evaluate as evaluate_module
from titer.report.read import Model
from titer.report.sections.generalization import grid
from titer.schema.evaluation import Data, Evaluation, Grading
from titer.schema.files import write_json
from titer.schema.roles import Roles
from titer.schema.types import to_json


def defended(folder: Path, toy_model: str, plan: Roles, prompts: str) -> str:
    """A copy of the toy model that says it was defended on a plan's data."""
    shutil.copytree(toy_model, folder)
    record = {"id": f"immunize-{folder.name}", "spec": {"model": toy_model}, "result": {"prompts": prompts}}
    write_json(folder / "titer.json", {"record": record, "data": to_json(plan)})
    return str(folder)


def labels(found: dict[str, Any]) -> list[str]:
    return [row["attack_data"] for row in found["conditions"]["generalization"]["details"]["matrix"]]


@pytest.mark.slow
def test_each_model_is_attacked_with_what_it_was_and_was_not_defended_on(
    tmp_path: Path, toy_model: str, toy_data: str
) -> None:
    potions, curses = assign(Data(toy_data)), assign(toy_data, domain="curses", withhold=())
    known = digest(e.prompt for e in select(potions.defence()))
    models = [
        defended(tmp_path / "a", toy_model, potions, known),
        defended(tmp_path / "b", toy_model, curses, known),  # whose own record names other prompts
    ]
    first, second = evaluate_module.evaluate(
        models,
        Evaluation(
            data=Data(toy_data),
            conditions=("resistance", "generalization"),
            controls={},
            max_steps=1,
            seeds=(0,),
            learning_rates=(1e-3,),
            grading=Grading(max_new_tokens=2),
        ),
        output_dir=tmp_path / "out",
    )
    assert labels(first) == ["unseen:brew", "withheld:forge", "cross:whisper+chant"]
    assert labels(second) == ["unseen:whisper+chant", "cross:brew", "cross:forge"]
    assert [r["data_audit"]["defence_saw"] for r in (first, second)] == ["these", "others"]
    table, _ = grid([Model(first), Model(second)])
    assert table.columns[1:] == ("brew", "forge", "whisper+chant")
    sides = [[cell.sample.split(" · ")[0] for cell in cells] for _, cells in table.rows[:2]]
    assert sides == [["unseen", "withheld", "cross"], ["cross", "cross", "unseen"]]
    reference = [{c["record"] for c in r["curves"] if c["role"] == "undefended"} for r in (first, second)]
    assert len(reference[0] & reference[1]) >= 3  # the undefended model is attacked once with each block
