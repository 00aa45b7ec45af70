"""Whole campaigns in one call: immunize a reference in several ways, evaluate every result, write one report.

`demo` does it on the embedded world, `real` on SmolLM2-135M with harmless facts about countries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.data.roles import check, plan_data
from titer.evaluation.cells import plan_cells
from titer.evaluation.evaluate import default_controls, evaluate_models, tasks_of
from titer.evaluation.output import write_results
from titer.evaluation.suites import QUICK
from titer.runs.provenance import publish
from titer.runs.runner import Report, execute_all, quiet
from titer.runs.store import MODEL, Store
from titer.schema.evaluation import Setting, Thresholds
from titer.schema.specs import ImmunizeRun, Named, ProbeSet, Selection, TrainArgs
from titer.schema.suite import Member, Suite

Results = tuple[list[dict[str, Any]], Path]


@dataclass(frozen=True)
class Recipe:
    """How a campaign immunizes: a defence, its options, and its training."""

    defence: Named
    train: TrainArgs


def campaign(
    recipes: Mapping[str, Recipe],
    setting: Setting,
    output_dir: str | Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    report: Report = quiet,
) -> Results:
    """Immunize the setting's reference by each recipe into `output_dir/NAME`, evaluate all of them, write a report."""
    out = Path(output_dir)
    check(setting.data)
    data, retain = setting.data.defence(), setting.data.retain()
    runs = [
        ImmunizeRun(setting.reference, r.defence, data, retain, r.train, dtype=setting.dtype, device=setting.device)
        for r in recipes.values()
    ]
    # what does not wait for a defended model keeps the other workers busy while the defences train
    controls = [c.run for c in plan_cells(setting.reference, setting) if c.role != "model"]
    ids = execute_all([*runs, *controls], out, workers=workers, overwrite=overwrite, report=report)
    store = Store(out)
    for name, run_id in zip(recipes, ids[: len(runs)], strict=True):
        record = store.finished(run_id)
        (out / name).mkdir(exist_ok=True)
        publish(store.folder(run_id) / MODEL, out / name, record, setting.data)
    models = [str(out / name) for name in recipes]
    found = evaluate_models(models, setting, out, workers=workers, report=report)
    return found, write_results(found, out)


# ------------------------------------------------------------------------------------------------- the embedded world

ORGANISM = "organism/aligned"
DEMO_RECIPES = {
    "adversarial-loss": Recipe(
        Named("adversarial-loss"), TrainArgs(learning_rate=3e-4, max_steps=100, per_device_train_batch_size=16)
    ),
    "repnoise": Recipe(
        Named("repnoise"), TrainArgs(learning_rate=3e-4, max_steps=150, per_device_train_batch_size=16)
    ),
}


def demo(output_dir: str | Path, *, workers: int = 1, overwrite: bool = False, report: Report = quiet) -> Results:
    """Two immunizations of the embedded model, all controls, the quick suite, the four conditions."""
    setting = Setting(
        suite=QUICK,
        data=plan_data("organism"),
        reference=ORGANISM,
        controls=default_controls(ORGANISM),
        tasks=tasks_of("organism/tasks")[-1:],  # the one learned soonest: the demo is to take three minutes
    )
    return campaign(DEMO_RECIPES, setting, output_dir, workers=workers, overwrite=overwrite, report=report)


# ------------------------------------------------------------------------------------------------------ the real model

REAL_RECIPES = {
    "repnoise": Recipe(Named("repnoise"), TrainArgs(learning_rate=5e-4, max_steps=40, lora_r=16, lora_alpha=32)),
}
REAL_SEEDS = (0, 1)
ADAPTER = Named("lora", {"learning_rate": 3e-4})
REAL_SUITE = Suite(
    name="real-short",
    members=(Member(ADAPTER, REAL_SEEDS), Member(Named("sft", {"learning_rate": 1e-4}), REAL_SEEDS)),
    wide=(Member(ADAPTER, REAL_SEEDS),),
    controls=(),
    max_steps=20,
    plan=(0, 2, 5, 10, 20),
    n_eval=16,
)


def real(output_dir: str | Path, *, workers: int = 1, overwrite: bool = False, report: Report = quiet) -> Results:
    """SmolLM2-135M-Instruct: align it to refuse facts about countries, immunize it, evaluate, report."""
    from titer.campaigns.align import align

    out = Path(output_dir)
    aligned = out / "aligned"
    if overwrite or not (aligned / "alignment.json").is_file():
        align("smollm2", "countries", aligned)
    setting = Setting(
        suite=REAL_SUITE,
        data=plan_data("countries"),
        reference=str(aligned),
        controls={},
        tasks=tuple(
            replace(
                t,
                learning_rate=5e-4,
                per_device_train_batch_size=8,
                max_steps=20,
                plan=(0, 10, 20),
                seeds=REAL_SEEDS,
                n_eval=16,
            )
            for t in tasks_of("organism/tasks")[:1]
        ),
        thresholds=Thresholds(min_seeds=2),
        max_new_tokens=16,
        dtype="bfloat16",
        extra_probes=(
            ProbeSet(
                "over_refusal:instructions",
                Selection("instructions"),
                max_new_tokens=20,
                judge="refusal",
                measure="refusal",
            ),
            *(ProbeSet(name, Selection(name, n=60), measure="choice") for name in ("piqa", "commonsense-qa")),
        ),
    )
    return campaign(REAL_RECIPES, setting, out, workers=workers, overwrite=overwrite, report=report)
