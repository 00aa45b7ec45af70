"""Immunize and attack, as Python functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from titer.attacks import make_attack
from titer.data.roles import assign, check
from titer.defences import configure
from titer.models.load import bare, check_available, resolve
from titer.runs.checks import check_run
from titer.runs.inputs import identify
from titer.runs.layout import canonical
from titer.runs.provenance import Model, publish, roles_of
from titer.runs.publishing import PROVENANCE, finish
from titer.runs.runner import Runner
from titer.runs.store import MODEL, Store
from titer.runs.tools import made_from
from titer.schema.errors import TiterError
from titer.schema.evaluation import Attempt, Case, Evaluation, Immunization
from titer.schema.files import read_json
from titer.schema.registry import named_as
from titer.schema.specs import DEFAULT_PLAN, Cell, Named
from titer.schema.suite import Member, Suite
from titer.schema.types import Curve, RunRecord


@dataclass(frozen=True)
class Attacked:
    """What `attack` returns: a record and a curve per seed."""

    records: tuple[RunRecord, ...]
    curves: tuple[Curve, ...]


def immunize(
    model: Model,
    asked: Immunization | str = Immunization(),
    *,
    output_dir: str | Path,
    runner: Runner | None = None,
    tokenizer: object = None,
) -> RunRecord:
    """Make a defended model in `output_dir` (a plain model folder with `titer.json`, the record of how).

    `asked` is an `Immunization`, or a defence by name (`repnoise`, `repnoise#noise_weight=0.01`). The defence sees its
    split of the data set's defended categories, and the benign rows of the same split. Raises `TiterError` before
    anything is made for a wrong name or option, and where `output_dir` holds another model.
    """
    asked = Immunization(asked) if isinstance(asked, str) else asked
    out = Path(output_dir)
    defence = named_as("defence", asked.defence, asked.defence_args)
    configure(defence.name, defence.options)
    roles = assign(replace(asked.data, open_dataset=asked.retain_dataset or asked.data.dataset))
    seen = replace(roles, has_open=roles.has_open and asked.retain_dataset != "")
    run = seen.immunize(
        named(model, tokenizer, out),
        defence,
        asked.train,
        base=asked.base_model,
        seed=asked.seed,
        compute=canonical(asked.compute),
    )
    check_run(run)
    runner = runner or Runner(out)
    _refuse_other(out, identify(run), runner.overwrite)
    record = runner.records([Cell(run, {})])[0]
    publish(Store(runner.root).folder(record.id) / MODEL, out, record, roles)
    return record


def _refuse_other(out: Path, run_id: str, overwrite: bool) -> None:
    """An output folder that holds something else is not written to, unless asked."""
    finish(out)
    if overwrite or not out.exists():
        return
    if (out / PROVENANCE).is_file():
        if published_id(read_json(out / PROVENANCE)) != run_id:
            raise TiterError(f"output_dir {out}: holds another model: choose another folder or pass --overwrite")
    elif any((out / f).exists() for f in ("config.json", "model.safetensors")):
        raise TiterError(
            f"output_dir {out}: holds a model titer did not make: choose another folder or pass --overwrite"
        )
    elif not out.is_dir():
        raise TiterError(f"output_dir {out}: is a file: choose a folder")


def published_id(provenance: object) -> object:
    """The id of the run that a `titer.json` tells of; None where it tells of none."""
    record = provenance.get("record") if isinstance(provenance, dict) else None
    return record.get("id") if isinstance(record, dict) else None


def named(model: Model, tokenizer: object, out: Path) -> str:
    """A model argument as a name; an object is saved beside the results first, under a hash of its weights."""
    if isinstance(model, (str, Path)):
        check_available(resolve(bare(str(model))))
        return str(model)
    if tokenizer is None:
        raise TiterError("model given as an object: pass its tokenizer too (tokenizer=...)")
    from titer.models.weights import save_given

    return str(save_given(model, tokenizer, out))


def attack(
    model: Model,
    asked: Attempt | str = Attempt(),
    *,
    output_dir: str | Path,
    runner: Runner | None = None,
    tokenizer: object = None,
) -> Attacked:
    """Attack a model under a budget, once per seed, with harm and utility probed along the way.

    `asked` is an `Attempt`, or an attack by name (`sft`, `sft#learning_rate=1e-3`). Runs are kept under
    `output_dir/runs`; a finished one is not redone. Raises `TiterError` before anything is made for a wrong name.
    """
    asked = Attempt(asked) if isinstance(asked, str) else asked
    out = Path(output_dir)
    rate = {} if asked.learning_rate is None else {"learning_rate": asked.learning_rate}
    chosen = named_as("attack", asked.attack, {**asked.attack_args, **rate})
    make_attack(chosen.name, chosen.options)
    case = _case(named(model, tokenizer, out), asked, chosen)
    runs = [case.attack_run(chosen, asked.trains_on, seed, budget=asked.budget) for seed in asked.seeds]
    check_run(runs[0])
    labels: Mapping[str, str | int] = {"data": asked.trains_on}
    cells = [Cell(run, labels) for run in runs]
    runner = runner or Runner(out)
    curves = runner.curves(cells)
    return Attacked(tuple(map(Store(runner.root).finished, (c.record for c in curves))), tuple(curves))


def _case(model: str, asked: Attempt, chosen: Named) -> Case:
    """The question that a single attack is: a suite of one member, no reference."""
    roles = roles_of(model, asked.data)
    check(roles)
    probes = asked.probe_steps or DEFAULT_PLAN
    members = (Member(chosen, asked.seeds),)
    suite = Suite("attack", members, (), (), asked.budget.steps or 0, probes, asked.n_train, asked.n_eval)
    question = Evaluation(
        grading=asked.grading,
        breach=asked.breach,
        price=asked.price,
        compute=canonical(asked.compute),
        stop_after=asked.stop_after,
    )
    return Case(model, "", roles, suite, question, attacker=asked.attacker_tokenizer or made_from(model))
