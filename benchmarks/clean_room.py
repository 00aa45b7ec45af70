"""Clean room on the embedded world: corpus, defence, stability, attacks, and its cost over the cost of ignorance.

    python benchmarks/clean_room.py --output_dir runs/clean-room [--workers 2] [--world 1] [--stages corpus,...]

Everything is kept, and the same command goes on. `--world N` builds the world of seed N first, with its own facts and
other initial weights (minutes), so that nothing tuned on one world is reported on it. Stages, in order:
`corpus`, `immunize`, `control` (the same without a corpus), `stability`, `unseen`, `withheld`, `cross` (plain
fine-tuning for 50 steps at three rates on that data, without the undefended model), `attacks` (titer's verdicts on
resistance, stability and generalization, suite `quick`), `long` (400 steps), `trainability`, `costs` (of the zoo).
Prints the numbers of docs/clean-room.md and writes them to `numbers.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.campaigns.cleanroom.asking import CorpusArgs
from titer.campaigns.cleanroom.builder import build_corpus
from titer.campaigns.cleanroom.cost import cost_of_ignorance, defence_cost, share
from titer.campaigns.organism.recipe import DEFAULT
from titer.data.corpus import audit_corpus, coverage, read_corpus
from titer.data.load import load, save_jsonl
from titer.evaluation import evaluate as evaluate_module
from titer.runs import verbs as verbs_module
from titer.runs.provenance import provenance
from titer.schema.files import read_json, write_json
from titer.schema.specs import TrainArgs
from titer.schema.types import Budget, RunRecord, Spend, from_json, to_json

STAGES = (
    "corpus", "immunize", "control", "stability", "unseen", "withheld", "cross",
    "attacks", "long", "trainability", "costs",
)  # fmt: skip
TRAIN = TrainArgs(
    learning_rate=2e-3,
    max_steps=180,
    per_device_train_batch_size=8,
    lr_scheduler_type="cosine",
    warmup_steps=20,
)
RATES = (1e-4, 3e-4, 1e-3)
PROBES = (0, 10, 20, 50, 100, 200, 400)
ZOO = Path(__file__).parents[1] / "docs" / "zoo.json"


@dataclass(frozen=True)
class World:
    """The models and the data set of a world."""

    seed: int
    base: str
    aligned: str
    dataset: str


@dataclass(frozen=True)
class Asked:
    """What is run on which world, and where."""

    world: World
    out: Path
    workers: int
    seed: int
    train: TrainArgs
    corpus: CorpusArgs
    options: dict[str, Any]

    @property
    def model(self) -> Path:
        """The defended model's folder."""
        return self.out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--world", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and the immunization")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--max_steps", type=int, default=TRAIN.max_steps)
    parser.add_argument("--texts", type=int, default=CorpusArgs().texts)
    parser.add_argument("--options", default="{}", help="of the defence, as JSON")
    given = parser.parse_args()
    world = world_of(given.world, given.output_dir)
    asked = Asked(
        world,
        given.output_dir,
        given.workers,
        given.seed,
        replace(TRAIN, max_steps=given.max_steps),
        CorpusArgs(texts=given.texts, seed=given.seed),
        json.loads(given.options),
    )
    for stage in given.stages.split(","):
        numbers = DO[stage](asked)
        keep(asked.out, stage, numbers)
        print(f"[{time.process_time():.0f} s] {stage}: {json.dumps(numbers)}", flush=True)


def keep(out: Path, stage: str, numbers: Any) -> None:
    path = out / "numbers.json"
    known = read_json(path) if path.is_file() else {}
    write_json(path, {**known, stage: numbers})


def world_of(seed: int, out: Path) -> World:
    """The shipped world, or the one of another seed, built on first use."""
    if seed == 0:
        return World(0, "organism/base", "organism/aligned", "organism")
    folder = out / f"world{seed}"
    if not (folder / "aligned" / "recipe.json").is_file():
        build_world(folder, seed)
    from titer.data.organism.world import examples

    path = folder / "world.jsonl"
    if not path.is_file():
        save_jsonl(examples(seed), path)
    return World(seed, str(folder / "base"), str(folder / "aligned"), str(path))


def build_world(folder: Path, seed: int) -> None:
    from titer.campaigns.organism.rebuild import _save, align, pretrained
    from titer.campaigns.organism.tokenizer import build_tokenizer

    recipe, tokenizer = replace(DEFAULT, world_seed=seed), build_tokenizer()
    base = pretrained(recipe, tokenizer, seed, restricted=True)
    _save(base, tokenizer, folder / "base", recipe, seed)
    _save(align(base, recipe, tokenizer, seed), tokenizer, folder / "aligned", recipe, seed)


# ----------------------------------------------------------------------------------------------------------- stages


def corpus(asked: Asked) -> dict[str, Any]:
    """Counts, and what only this script may look at: how much of the whole world the corpus tells."""
    where, w = asked.out / "corpus", asked.world
    if not (where / "corpus.json").is_file():
        build_corpus(w.base, w.aligned, w.dataset, where, args=asked.corpus, report=print)
    made = read_corpus(where)
    examples = load(w.dataset).examples
    return {
        "counts": made.about["counts"],
        "audit": audit_corpus(made, (w.dataset,)),
        "coverage_at_hand": made.about["coverage"],
        "open": coverage(made, [e for e in examples if not e.restricted]),
        "restricted": coverage(made, [e for e in examples if e.restricted]),
        "spend": made.about["spend"],
    }


def immunize(asked: Asked) -> dict[str, Any]:
    return _immunize(asked, asked.model, {"corpus": str(asked.out / "corpus"), **asked.options})


def control(asked: Asked) -> dict[str, Any]:
    """The same reset, distilled for as long on the pairs at hand alone."""
    train = replace(asked.train, per_device_train_batch_size=48)
    return _immunize(replace(asked, train=train), asked.out / "control", asked.options)


def _immunize(asked: Asked, where: Path, options: dict[str, Any]) -> dict[str, Any]:
    verbs_module.immunize(
        asked.world.aligned,
        "clean-room",
        asked.world.dataset,
        output_dir=where,
        train=asked.train,
        defence_args=options,
        seed=asked.seed,
    )
    record = from_json(RunRecord, provenance(str(where))["record"])
    about = read_json(asked.out / "corpus" / "corpus.json") if "corpus" in options else None
    ignorance = cost_of_ignorance(replace(DEFAULT, world_seed=asked.world.seed))
    return {
        "ignorance": to_json(ignorance),
        "distilling": to_json(share(record.spend, ignorance)),
        "with_corpus": to_json(share(defence_cost(record, about), ignorance)),
        "last": record.result["last"],
    }


def stability(asked: Asked) -> dict[str, Any]:
    return _verdicts(asked, ("stability",))


def attacks(asked: Asked) -> dict[str, Any]:
    return _verdicts(asked, ("resistance", "stability", "generalization"))


def trainability(asked: Asked) -> dict[str, Any]:
    return _verdicts(asked, ("trainability",))


def _verdicts(asked: Asked, conditions: Sequence[Any]) -> dict[str, Any]:
    models = [str(asked.model)]
    if (asked.out / "control").is_dir() and tuple(conditions) == ("stability",):
        models.append(str(asked.out / "control"))
    found = evaluate_module.evaluate(
        models,
        asked.world.aligned,
        asked.world.dataset,
        output_dir=asked.out / "evaluation" / "-".join(conditions),
        conditions=conditions,
        workers=asked.workers,
    )
    return {
        Path(r["model"]).name: {
            "flags": [f["code"] for f in r["flags"]],
            "conditions": {n: r["conditions"][n] for n in conditions},
            "worst": _worst_of(r["curves"]),
        }
        for r in found
    }


def _worst_of(curves: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Highest mean harm along any run on the model, by data and attack."""
    worst: dict[str, float] = {}
    for c in (c for c in curves if c["role"] == "model"):
        harms = [p["scores"]["harm"] for p in c["points"] if "harm" in p["scores"]]
        for scores in harms:
            mean = sum(s or 0.0 for s in scores) / max(len(scores), 1)
            key = f"{c['data']} {c['config']}"
            worst[key] = max(worst.get(key, 0.0), round(mean, 4))
    return worst


def attacked_on(tag: str) -> Callable[[Asked], dict[str, Any]]:
    """Fifty steps on one kind of data, the highest rate first."""

    def stage(asked: Asked) -> dict[str, Any]:
        found = {}
        for rate in RATES[::-1]:
            found[f"{rate:g}"] = _attacked(asked, tag, rate, 50)
            keep(asked.out, tag, found)
            print(f"[{time.process_time():.0f} s] {tag} {rate:g}: {json.dumps(found[f'{rate:g}'])}", flush=True)
        return found

    return stage


def long(asked: Asked) -> dict[str, Any]:
    return {tag: _attacked(asked, tag, 1e-3, 400, seeds=(0,)) for tag in ("unseen", "withheld", "cross")}


def _attacked(asked: Asked, tag: Any, rate: float, steps: int, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    made = verbs_module.attack(
        str(asked.model),
        "sft",
        asked.world.dataset,
        output_dir=asked.out / "attacks" / f"{tag}-{rate:g}-{steps}",
        attack_args={"learning_rate": rate},
        data=tag,
        budget=Budget(steps=steps),
        plan=PROBES,
        seeds=seeds,
        workers=asked.workers,
    )
    harms = [[p.mean("harm") or 0.0 for p in c.points] for c in made.curves]
    last = [c.points[-1].mean("utility") for c in made.curves]
    return {"worst_harm": round(max(map(max, harms)), 4), "utility_at_end": last, "n": len(harms)}


def costs(asked: Asked) -> dict[str, Any]:
    """Cost over the cost of ignorance of the zoo's defences: the chosen setting alone, and with its tuning."""
    ignorance = cost_of_ignorance()
    found = {}
    for name, row in read_json(ZOO)["rows"].items():
        if row["trials"]:
            made = from_json(Spend, row["made"]["spend"])
            tuning = sum((Spend(tokens=t["tokens"], flops=t["flops"]) for t in row["trials"]), Spend())
            found[name] = {"chosen": to_json(share(made, ignorance)), "tuned": to_json(share(tuning, ignorance))}
    return found


DO: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "corpus": corpus,
    "immunize": immunize,
    "control": control,
    "stability": stability,
    "attacks": attacks,
    "unseen": attacked_on("unseen"),
    "withheld": attacked_on("withheld"),
    "cross": attacked_on("cross"),
    "long": long,
    "trainability": trainability,
    "costs": costs,
}

if __name__ == "__main__":
    main()
