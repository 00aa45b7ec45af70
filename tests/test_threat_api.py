"""The API threat model end to end on the toy model: plan, run, results, report, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from titer.data.load import load
from titer.data.roles import assign
from titer.data.splits import split_of
from titer.evaluation.output import load_results, render_report
from titer.evaluation.provider import Provided, cells_of, evaluate_provider, fine_tune, named_guards
from titer.report.page import render
from titer.runs.provider import mix
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data, Grading, Provider
from titer.schema.specs import FINE_TUNE, Template
from titer.schema.types import Example

TUNE = {"learning_rate": "1e-2", "max_steps": "2", "per_device_train_batch_size": "4", "lora_r": "2"}


def asked(data: str, **changes: Any) -> Provider:
    """One guard or more at one ratio and seed on the toy data, with a tune of two steps."""
    given = {"poison_ratios": (0.1,), "seeds": (0,), "n_eval": 3, "tune": TUNE, "task_dataset": data}
    return Provider(**{**given, "data": Data(data), **changes})


def provided(model: str, provider: Provider) -> Provided:
    data = provider.data.dataset
    return Provided(model, assign(Data(data)), provider.task_dataset or "", provider)


def wide(data: str) -> Provider:
    guards = ("ptst", "none+antidote#ratio=1.0")
    graded = Grading(max_new_tokens=4)
    return asked(data, guard=guards, poison_ratios=(0.0, 0.5), seeds=(0, 1), n_train=8, grading=graded)


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, toy_model: str, toy_data: str
) -> tuple[Path, Mapping[str, Any]]:
    """Two guards and the control at two ratios, two seeds each: 12 runs of two steps."""
    out = tmp_path_factory.mktemp("tunes")
    found = evaluate_provider(toy_model, wide(toy_data), output_dir=out)
    return out, found[0]


def test_results_hold_both_metrics_with_what_stands_behind_them(measured: tuple[Path, Mapping[str, Any]]) -> None:
    out, result = measured
    assert (result["threat_model"], result["task"], len(result["records"])) == ("api", "river", 12)
    rows = {(r["guard"], r["ratio"]): r for r in result["rows"]}
    assert set(rows) == {(g, r) for g in ("none", "ptst", "none+antidote") for r in (0.0, 0.5)}
    for row in rows.values():
        for key in ("hs", "fa"):
            e = row[key]
            assert 0 <= e["low"] <= e["value"] <= e["high"] <= 1
            assert (e["n"], e["seeds"], len(e["records"])) == (3, [0, 1], 2)
        assert row["hs_start"]["seeds"] == [0] and row["diverged"] == []
    assert rows["none", 0.5]["hs_difference"]["value"] == 0
    assert "conditions" not in result
    assert load_results([out])[0][0]["rows"] == result["rows"]


def test_a_repair_comes_before_the_last_grading(measured: tuple[Path, Mapping[str, Any]]) -> None:
    """All of the update pruned: the model says at the end, word for word, what it said at the start."""
    out, result = measured
    store = Store(out)
    changed = {}
    for row in result["rows"]:
        for record in row["hs"]["records"]:
            said = store.completions(record)
            start, end = ([c.text for c in said if c.step == s] for s in (0, 2))
            changed.setdefault(row["guard"], []).append(start != end)
    assert not any(changed["none+antidote"]) and any(changed["none"])


def test_the_page_and_its_refusal_to_mix(measured: tuple[Path, Mapping[str, Any]], tmp_path: Path) -> None:
    out, result = measured
    page = (out / "report.html").read_text()
    assert "HS, harmful score" in page and "none+antidote" not in render([{**result, "rows": result["rows"][:2]}])[:0]
    assert page.count('<details class="run">') == 12 and "<script" not in page
    assert all(f"run-{record}" in page for record in result["records"])
    render_report([(result, out)], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page
    with pytest.raises(TiterError, match="do not go into one report"):
        render([result, {"model": "m", "conditions": {}}])


def test_hostile_names_stay_text(measured: tuple[Path, Mapping[str, Any]]) -> None:
    _, result = measured
    bad = "<script>alert(1)</script>"
    rows = [{**r, "guard": bad if r["guard"] == "ptst" else r["guard"]} for r in result["rows"]]
    guards = {bad if k == "ptst" else k: {**v, "broken_by": bad} for k, v in result["guards"].items()}
    page = render([{**result, "rows": rows, "guards": guards, "task": bad}])
    assert "<script" not in page and "&lt;script" in page


def test_nothing_is_redone(measured: tuple[Path, Mapping[str, Any]], toy_model: str, toy_data: str) -> None:
    out, result = measured
    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").glob("*/record.json")}
    again = evaluate_provider(toy_model, wide(toy_data), output_dir=out)
    assert again[0]["rows"] == result["rows"]
    assert stamps == {p: p.stat().st_mtime_ns for p in (out / "runs").glob("*/record.json")}


def test_what_is_served_is_what_is_asked(toy_model: str, toy_data: str) -> None:
    """A guard with a say in serving puts both probe sets behind its template; the others leave prompts alone."""
    cells = cells_of(provided(toy_model, asked(toy_data, guard=("ptst", "lisa"))))
    templates = {c.labels["guard"]: {p.template for p in c.run.probes} for c in cells}
    assert templates["none"] == templates["lisa"] == {Template()}
    assert {bool(t.system) for t in templates["ptst"]} == {True} and len(templates["ptst"]) == 1
    told = {(c.labels["guard"], c.labels["ratio"], c.run.seed) for c in cells}
    assert told == {(g, "0.1", 0) for g in ("none", "ptst", "lisa")}


def test_each_side_has_its_own_split(toy_model: str, toy_data: str) -> None:
    run = cells_of(provided(toy_model, asked(toy_data)))[0].run
    safety = run.attack.options["safety"]["split"]
    assert (run.data.split, run.retain.split, safety) == ("attack", "attack", "defence")
    assert {p.selection.split for p in run.probes} == {"evaluation"}
    assert len({split_of(e.prompt) for e in load(toy_data).examples}) == 3


def test_mix() -> None:
    task = [Example(f"t{i}", "", "a") for i in range(50)]
    harmful = [Example(f"h{i}", "x", "no") for i in range(6)]

    def counts(ratio: float, n: int) -> tuple[int, int]:
        rows = mix(task, harmful, ratio, n, 0)
        assert len(set(rows)) == len(rows)
        return sum(e.restricted for e in rows), sum(not e.restricted for e in rows)

    assert counts(0.0, 20) == (0, 20) and counts(0.1, 20) == (2, 18)
    assert counts(0.2, 100) == (6, 24)  # the harmful rows run short: both shrink alike
    assert counts(1.0, 20) == (6, 0)
    assert mix(task, harmful, 0.1, 20, 0) != mix(task, harmful, 0.1, 20, 1)
    for ratio, said in ((1.5, "between 0 and 1"), (1.0, "too few")):
        with pytest.raises(TiterError, match=said):
            mix(task, [], ratio, 20, 0) if ratio == 1 else mix(task, harmful, ratio, 20, 0)


def test_options_go_to_the_guard_they_stand_behind() -> None:
    both = named_guards(Provider(("lisa#rho=0.5", "lisa#rho=0.25+antidote#ratio=0.2")))
    assert both["lisa"][0] == {"rho": "0.5"}
    assert both["lisa+antidote"][0] == {"lisa.rho": "0.25", "antidote.ratio": "0.2"}
    assert named_guards(Provider(("lisa",), {"rho": "0.5"}))["lisa"][0] == {"rho": "0.5"}
    with pytest.raises(TiterError, match="write each one's options behind it"):
        named_guards(Provider(("lisa", "sbr"), {"rho": "1"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guard": ("safelora",)}, "pass --base_model"),
        ({"task_dataset": ""}, "pass --task_dataset"),
        ({"guard": ("lisa+sbr",)}, "both act during"),
    ],
)
def test_errors_before_anything_runs(toy_model: str, toy_data: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TiterError, match=said):
        cells_of(provided(toy_model, asked(toy_data, **changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"poison_ratios": (1.2,)}, "poison_ratios must lie in"),
        ({"poison_ratios": ()}, "no poison ratio"),
        ({"seeds": ()}, "no seed"),
    ],
)
def test_what_cannot_be_asked_is_refused(toy_data: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asked(toy_data, **changes)


def test_the_base_of_the_embedded_world_is_known(toy_model: str, toy_data: str) -> None:
    cells = cells_of(provided("organism/aligned", asked(toy_data, guard=("safelora",))))
    options = next(c.run.attack.options for c in cells if c.labels["guard"] == "safelora")
    assert options["base"] == "organism/base" and len(options["base_fingerprint"]) == 16
    named = asked(toy_data, guard=("safelora",), base_model=toy_model)
    other = next(c for c in cells_of(provided("organism/aligned", named)) if c.labels["guard"] == "safelora")
    assert other.run.attack.options["base_fingerprint"] != options["base_fingerprint"]


def test_a_flag_of_the_tune_leaves_the_others_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line too: one field given must not bring back the defaults of another training."""
    from titer.cli import main

    seen: list[Provider] = []

    def instead(model: Any, given: Provider, **_: Any) -> list[Any]:
        seen.append(given)
        return []

    monkeypatch.setattr("titer.evaluation.provider.evaluate_provider", instead)
    flags = ["--guard", "lisa#rho=0.5", "sbr", "--tune.max_steps", "7"]
    main(["provider", "--model", "m", "--output_dir", str(tmp_path), *flags])
    assert fine_tune(seen[0].tune) == replace(FINE_TUNE, max_steps=7)
    assert seen[0].guard == ("lisa#rho=0.5", "sbr")
    with pytest.raises(TiterError, match="did you mean max_steps"):
        fine_tune({"max_step": "3"})
    with pytest.raises(TiterError, match="--tune"):
        fine_tune({"max_steps": "many"})
