"""One attack (or measurement), from its spec to its curve."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from titer.attacks import make_attack
from titer.data.select import select
from titer.judges.parts.cost import bills, since
from titer.models.load import load_tokenizer, resolve
from titer.models.remote import Server
from titer.runs.inputs import inputs, judges_of
from titer.runs.loaded import model_of, reference_of
from titer.runs.probe import Prober
from titer.runs.store import Finished, Progress
from titer.runs.tools import Tools, tools_of
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS, CURVE, write_lines
from titer.schema.specs import SAID, AttackRun
from titer.training.checkpoint import Checkpoint
from titer.training.meter import Meter
from titer.training.session import Session, Stopped


def run_attack(run: AttackRun, progress: Progress, folder: Path, saved: Checkpoint) -> Finished:
    """Load the model, drive the attack through a session, and say what came of it."""
    attack = make_attack(run.attack.name, run.attack.options)
    examples = select(run.data)
    probes = {p.name: select(p.selection) for p in run.probes}
    retain = select(run.retain) if run.retain else []
    server = _server(run)
    if server is None:
        model, own = model_of(run, inputs(run)["model"])
        tools = tools_of(run, model, own)
    else:
        model, tools = None, Tools(load_tokenizer(resolve(run.model)))
    tokenizer = tools.tokenizer
    before = bills(judges_of(run))
    session = Session(
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        retain=retain,
        prober=Prober(
            run.probes, probes, tokenizer, reference=reference_of(run), server=server, end_ids=tools.end_ids
        ),
        budget=run.budget,
        plan=run.plan,
        breach=run.breach,
        stop_after=run.stop_after,
        seed=run.seed,
        meter=Meter(usd_per_exaflop=run.price.usd_per_exaflop),
        test_template=attack.test_template,
        on_progress=progress,
        saved=saved,
    )
    _drive(session, attack)
    write_lines(folder / CURVE, session.points)
    write_lines(folder / COMPLETIONS, session.completions)
    result = {
        "end": session.end,
        "attack": attack.name,
        "config": label(attack, run.attack.options),
        "passes": session.meter.passes,
        "trained_on": len(examples),
    }
    judging = since(before, bills(judges_of(run)))
    return Finished(session.meter.spend, result | ({"judging": judging} if judging else {}))


def _server(run: AttackRun) -> Server | None:
    """The server that holds the run's model, if it names one; `TiterError` for what needs the weights."""
    if not run.generate_url:
        return None
    if run.attack.name != "none":
        raise TiterError(
            f"generate_url: the attack {run.attack.name} changes weights, a server's cannot be: leave it out"
        )
    blind = [p.name for p in run.probes if p.measure not in SAID]
    if blind:
        raise TiterError(f"generate_url: the probe set {blind[0]} needs the model's weights: leave one of them out")
    return Server.at(run.generate_url)


def label(attack: Any, options: Mapping[str, Any]) -> str:
    """The attack with the options it was given, learning rate always among them: what configurations are told by."""
    rate = {"learning_rate": attack.train.learning_rate} if any(f.name == "train" for f in fields(attack)) else {}
    shown = sorted(_flat({**rate, **options}).items())
    words = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown]
    return f"{attack.name}({', '.join(words)})" if words else str(attack.name)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of a nested mapping named `outer.inner`; `train` is left out of such names."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {k if key == "train" else f"{key}.{k}": v for k, v in inner.items()}
    return flat


def _drive(session: Session, attack: Any) -> None:
    """Probe, let the attack work until it is done or stopped, probe the end; the model is bare again in any case."""
    with closing(session):
        try:
            session.probe()
            if not session.over:
                attack.run(session)
        except Stopped:
            pass
        session.finish()
