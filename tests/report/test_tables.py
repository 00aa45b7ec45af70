"""Tables without a chart: harm after harmless tasks, other judges."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from synthetic_results import result

from titer.report.cells import NONE
from titer.report.page import render
from titer.report.read import Model
from titer.report.sections.generalization import audits, grid
from titer.report.sections.judges import judges
from titer.report.sections.price import configurations
from titer.report.sections.settings import commands
from titer.report.sections.trainability import harm_around_tasks

ZERO = {"value": 0.0, "low": 0.0, "high": 0.09, "n": 40, "seeds": [0, 1, 2], "records": ["abc"], "unit": "harm"}
HARM = {
    "model": {"before": ZERO, "after": ZERO | {"value": 0.41, "low": 0.3, "high": 0.5}},
    "reference": {"before": ZERO, "after": ZERO},
}
RATE = {"n": 40, "unscored": 2, "outcomes": {"comply": 0.5, "refuse": 0.25, "evade": 0.25, "incoherent": 0.0}}
AGREEMENT = {"n": 38, "same": 0.9, "kappa": 0.77, "kappa_outcomes": None, "spearman": 0.8, "differ": [1, 5, 7]}
JUDGED = {
    "runs": ["r1", "r2"],
    "rates": {"harm": [RATE | {"judge": "stored:exact", "harm": 0.5}, RATE | {"judge": "<b>mine</b>", "harm": None}]},
    "agreements": [AGREEMENT | {"judges": ["stored:exact", "<b>mine</b>"]}],
    "bills": {},
}


def with_harm() -> dict[str, Any]:
    one = deepcopy(result("repnoise"))
    one["conditions"]["trainability"]["details"]["tasks"]["reversal"]["harm"] = HARM  # type: ignore[index]
    return one


def test_harm_before_and_after_a_task_is_on_the_page_with_its_interval_and_runs() -> None:
    [table] = harm_around_tasks([Model(with_harm())])
    assert [name for name, _ in table.rows] == ["reversal"]  # the other tasks of the results were probed for no harm
    assert [c.value for c in table.rows[0][1]] == ["0", "0.41", "0", "0"]
    assert table.rows[0][1][1].interval == "[0.30, 0.50]" and table.rows[0][1][1].records == ("abc",)
    page = render([with_harm()])
    assert "Harm before and after harmless training" in page and 'data-name="synthetic/repnoise, after"' in page


def test_what_other_judges_say_is_shown_once_for_all_models_of_a_folder() -> None:
    both = [result(k) | {"judges": JUDGED} for k in ("repnoise", "adversarial")]
    rates, agreement = judges([Model(r) for r in both])
    assert [[c.value for c in cells][:3] for _, cells in rates.rows] == [["40", "2", "0.50"], ["40", "2", "–"]]
    assert [c.value for c in agreement.rows[0][1]] == ["38", "0.90", "0.77", "–", "0.80", "3"]
    page = render(both)
    assert page.count('id="judges"') == 1 and 'href="#judges"' in page
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page


def test_without_them_there_is_no_such_section() -> None:
    page = render([result("repnoise")])
    assert 'id="judges"' not in page and "harmless training</h3>" not in page


def test_what_asking_has_cost_is_shown() -> None:
    bill = {"requests": 40, "prompt_tokens": 12000, "usd": 0.25}
    tables = judges([Model(result("repnoise") | {"judges": JUDGED | {"bills": {"endpoint:x": bill}}})])
    assert tables[-1].columns == ("Judge", "requests", "prompt tokens", "usd")
    assert [c.value for c in tables[-1].rows[0][1]] == ["40", "12,000", "0.25"]


def defended_on(kind: str, *names: str, **labels: str) -> dict[str, Any]:
    """A result whose attacks carry other labels, as those of an evaluation of several models do."""
    one: dict[str, Any] = deepcopy(result(kind))
    one["settings"]["data"] = {"defended": list(names), "withheld": ["c"], "cross": ["d"]}
    for row in one["conditions"]["generalization"]["details"]["matrix"]:
        row["attack_data"] = labels.get(row["attack_data"], row["attack_data"])
    return one


def test_models_defended_on_different_data_make_a_grid() -> None:
    first = defended_on("repnoise", "a", "b", unseen="unseen:a+b", withheld="withheld:c", cross="cross:d")
    other = defended_on("adversarial", "d", unseen="unseen:d", withheld="cross:c", cross="cross:a+b")
    table, kinds = grid([Model(first), Model(other)])
    assert table.columns == ("Defence data", "a+b", "c", "d")
    assert [name for name, _ in table.rows] == [
        "synthetic/repnoise, defended on a, b", "synthetic/adversarial, defended on d", "undefended",
    ]  # fmt: skip
    assert [c.sample.split(" · ")[0] for c in table.rows[0][1]] == ["unseen", "withheld", "cross"]
    assert [c.sample.split(" · ")[0] for c in table.rows[1][1]] == ["cross", "cross", "unseen"]
    rows = {str(r["attack_data"]): r for r in first["conditions"]["generalization"]["details"]["matrix"]}
    assert table.rows[0][1][1].records == tuple(rows["withheld:c"]["steps"]["records"]) != ()
    assert kinds.rows[1][1][0].value == first["conditions"]["generalization"]["details"]["tags"]["withheld"]["verdict"]
    page = render([first, other])
    assert "defended on a, b" in page and "By kind of attack data" in page


def test_models_defended_on_the_same_data_make_none() -> None:
    assert grid([Model(defended_on("repnoise", "a")), Model(defended_on("adversarial", "a"))]) == []
    assert grid([Model(defended_on("repnoise", "a"))]) == [] == grid([])


def test_the_audit_of_the_data_is_on_the_page() -> None:
    sets = {"defence data": {"prompts": 65, "digest": "d7a1", "categories": ["a"]}}
    audit = {"rule": "r", "exact": 0, "near": 0, "sets": sets, "defence_saw": "these"}
    page = render([result("repnoise") | {"data_audit": audit}])
    assert "0 exact and 0 near duplicates" in page and "the same prompts (digest d7a1)" in page
    [(_, others)] = audits([Model(result("repnoise") | {"data_audit": audit | {"defence_saw": "others"}})])
    assert "OTHER prompts" in others


def test_the_distance_from_the_reference_is_on_the_page() -> None:
    one = deepcopy(result("repnoise"))
    kl = {"value": 0.12, "low": 0.1, "high": 0.15, "n": 40, "records": ["abc"], "unit": "nats per token"}
    one["conditions"]["stability"]["details"]["kl"] = kl  # type: ignore[index]
    page = render([one])
    assert "distance from the reference: KL" in page and "[0.10, 0.15]" in page


def test_the_commands_that_made_the_models_come_before_those_that_measured_them() -> None:
    one = deepcopy(result("repnoise")) | {"commands": ["titer evaluate --model a"]}
    one["settings"]["immunization"] = {"commands": ["titer immunize --output_dir a"]}  # type: ignore[index]
    assert commands([Model(one), Model(one)]) == ["titer immunize --output_dir a", "titer evaluate --model a"]
    page = render([one])
    assert page.index("titer immunize --output_dir a") < page.index("titer evaluate --model a</code>")


def test_every_attack_configuration_has_a_row_with_its_price_and_the_undefended_one() -> None:
    estimate = {
        "value": 5.0,
        "low": 2.0,
        "high": 5.0,
        "n": 1,
        "seeds": [0],
        "records": ["r"],
        "unit": "steps",
        "method": "",
    }
    config = {
        "config": "sft",
        "data": "unseen",
        "runs": 3,
        "breached": 1,
        "worst": {"steps": estimate},
        "median": {"steps": estimate},
    }
    held = {**config, "config": "lora", "breached": 0}
    inner = {"configs": [held, config], "controls": {"undefended": {"configs": [config]}}}
    result = {"model": "m", "conditions": {"resistance": {"details": inner}}}
    ((name, table),) = configurations([Model(result)])
    assert name == "m" and [row[0] for row in table.rows] == ["sft, unseen data", "lora, unseen data"]
    assert table.rows[0][1][0].value == "1 of 3" and table.rows[1][1][0].value == "0 of 3"
    assert table.rows[0][1][3].value != NONE and table.rows[1][1][3].value == NONE
