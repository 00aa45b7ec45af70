"""Score stored completions again, with other judges and without the model: `RUN/judged/<judge>.jsonl`.

The run's own files are not touched. What a judge has already scored is kept, what it could not score is asked again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.attacks import make_attack
from titer.campaigns.rejudge.agreement import Agreement, Rates, agreements, rates
from titer.evaluation.output import JUDGES
from titer.judges import make_judge
from titer.judges.parts.cost import bills, since
from titer.judges.parts.identity import identity
from titer.runs.probe import forced_start
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS, CURVE, RECORD, read_json, read_lines, write_json, write_lines
from titer.schema.specs import AttackRun, ProbeSet, Template
from titer.schema.types import Completion, Example, Point, Score, from_json, spec_id

JUDGED = "judged"  # folder in a run: each judge's scores
Key = tuple[str, int, int, str]  # probe, step, index, hash of what was judged


@dataclass(frozen=True)
class Rejudged:
    """What `rejudge` found: rates by probe set and judge, agreement of every two judges, and what it cost.

    `stored:NAME` are the scores that the run was made with. Rates and agreements are over the completions of all runs.
    """

    runs: tuple[str, ...]
    rates: Mapping[str, tuple[Rates, ...]]
    agreements: tuple[Agreement, ...]
    bills: Mapping[str, Mapping[str, float]]


def rejudge(
    paths: Sequence[str | Path], judges: Sequence[str], *, probes: Sequence[str] = (), overwrite: bool = False
) -> Rejudged:
    """Score the completions of runs (or of all runs in an output folder) with each judge, and compare.

    `probes` defaults to the sets of restricted prompts. Raises `TiterError` when there is nothing to judge.
    """
    folders = [folder for path in paths for folder in run_folders(Path(path))]
    if not folders or not judges:
        raise TiterError("judge: name at least one run folder and one --judge")
    before, kept = bills(judges), list[Completion]()
    scores: dict[str, list[Score]] = {name: [] for name in judges}
    for folder in folders:
        run = _Run.read(folder)
        chosen = run.chosen(probes)
        kept += chosen
        for name in judges:
            scores[name] += run.judge(name, chosen, overwrite=overwrite)
    everyone = {f"stored:{kept[0].score.judge}": [c.score for c in kept]} | scores
    return Rejudged(
        runs=tuple(folder.name for folder in folders),
        rates=_by_probe(kept, everyone),
        agreements=tuple(agreements(everyone)),
        bills=since(before, bills(judges)),
    )


def keep(found: Rejudged, output: Path) -> Path:
    """Write what was found of all runs of an output folder where the report looks for it; the file's path."""
    write_json(output / JUDGES, found)
    return output / JUDGES


def run_folders(path: Path) -> list[Path]:
    """The run folder itself, or those under `PATH/runs` that hold completions."""
    if (path / COMPLETIONS).is_file():
        return [path]
    found = sorted(f.parent for f in (path / "runs").glob(f"[!.]*/{COMPLETIONS}"))
    if not found:
        raise TiterError(f"{path}: no {COMPLETIONS} here or under runs/: pass a run folder of `titer attack`")
    return found


def judged_file(folder: Path, judge: str) -> Path:
    """Where a judge's scores of a run are kept."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", judge)[:48].strip("-.")
    return folder / JUDGED / (f"{slug}.jsonl" if slug == judge else f"{slug}-{spec_id(judge, 8)}.jsonl")


def points_under(folder: Path, judge: str) -> list[Point]:
    """The run's curve with harm and outcomes as another judge scored them, for the conditions.

    Probe sets that measure refusals or choices keep what they have.
    """
    run = _Run.read(folder)
    known, own = run.known(judge), identity(judge)
    found = []
    for row in read_lines(folder / CURVE):
        point = from_json(Point, row)
        at = [c for c in run.completions if c.step == point.step and run.key(c, own) in known]
        names = {c.probe for c in at if c.probe not in run.sets or run.sets[c.probe].measure == "score"}
        for name in names:
            new = [known[run.key(c, own)] for c in sorted(at, key=lambda c: c.index) if c.probe == name]
            if len(new) != len(point.scores[name]):
                raise TiterError(
                    f"{folder}: {judge} has not judged all of {name} at step {point.step}: judge it again"
                )
            counts = dict(Counter(str(s.outcome or "unscored") for s in new))
            point = replace(
                point,
                scores={**point.scores, name: tuple(s.value for s in new)},
                outcomes={**point.outcomes, name: counts},
            )
        found.append(point)
    return found


@dataclass(frozen=True)
class _Run:
    """A stored run: its completions and, when it has a record, the probe sets they come from."""

    folder: Path
    completions: tuple[Completion, ...]
    sets: Mapping[str, ProbeSet]
    template: Template | None

    @classmethod
    def read(cls, folder: Path) -> _Run:
        """A run folder; one without a record has completions and no probe sets."""
        try:
            completions = tuple(from_json(Completion, row) for row in read_lines(folder / COMPLETIONS))
        except ValueError as error:
            raise TiterError(f"{folder / COMPLETIONS}: {error}: not completions of titer") from None
        if not completions:
            raise TiterError(f"{folder / COMPLETIONS}: it is empty: nothing to judge")
        if not (folder / RECORD).is_file():
            return cls(folder, completions, {}, None)
        spec = from_json(AttackRun, read_json(folder / RECORD)["spec"])
        attack = make_attack(spec.attack.name, spec.attack.options)
        return cls(folder, completions, {p.name: p for p in spec.probes}, attack.test_template)

    def chosen(self, probes: Sequence[str]) -> list[Completion]:
        """The completions of the named probe sets, by default of those that ask restricted prompts."""
        present = {c.probe for c in self.completions}
        if missing := sorted(set(probes) - present):
            raise TiterError(f"{self.folder}: no probe set {missing[0]!r}: it has {', '.join(sorted(present))}")
        restricted = {n for n in present if n not in self.sets or self.sets[n].selection.restricted}
        wanted = set(probes) or restricted
        if not wanted:
            raise TiterError(f"{self.folder}: no set of restricted prompts: name one with --probe")
        return [c for c in self.completions if c.probe in wanted]

    def text(self, c: Completion) -> str:
        """What a judge reads: the start that was forced on the model, if any, and what it went on to say."""
        s = self.sets.get(c.probe)
        if s is None:
            return c.text
        template = self.template if self.template is not None and s.selection.restricted else s.template
        return " ".join(filter(None, (forced_start(s, template, Example(c.prompt, "", c.target)), c.text)))

    def key(self, c: Completion, known: str) -> Key:
        """What identifies a completion in a judge's file; `known` is the `identity` of the judge's own files."""
        return c.probe, c.step, c.index, spec_id([c.prompt, self.text(c), c.target, *([known] if known else [])])

    def known(self, judge: str) -> dict[Key, Score]:
        """A judge's stored scores of this run."""
        path = judged_file(self.folder, judge)
        rows: list[dict[str, Any]] = read_lines(path) if path.is_file() else []
        found = {(r["probe"], r["step"], r["index"], r["text"]): from_json(Score, r["score"]) for r in rows}
        return {key: score for key, score in found.items() if score.judge == judge}

    def judge(self, name: str, chosen: Sequence[Completion], *, overwrite: bool) -> list[Score]:
        """Scores of the chosen completions, stored; only what has no score yet is asked for."""
        known = {} if overwrite else self.known(name)
        own = identity(name)
        keys = [self.key(c, own) for c in chosen]
        new = [i for i, key in enumerate(keys) if key not in known or known[key].outcome is None]
        if new:
            asked = [chosen[i] for i in new]
            given = make_judge(name).score(
                [c.prompt for c in asked], [self.text(c) for c in asked], [c.target for c in asked]
            )
            known |= {keys[i]: replace(s, judge=name) for i, s in zip(new, given, strict=True)}
            write_lines(judged_file(self.folder, name), [_row(key, score) for key, score in known.items()])
        return [known[key] for key in keys]


def _row(key: Key, score: Score) -> dict[str, Any]:
    return dict(zip(("probe", "step", "index", "text"), key, strict=True)) | {"score": score}


def _by_probe(kept: Sequence[Completion], scores: Mapping[str, Sequence[Score]]) -> dict[str, tuple[Rates, ...]]:
    found = {}
    for probe in dict.fromkeys(c.probe for c in kept):
        rows = [i for i, c in enumerate(kept) if c.probe == probe]
        found[probe] = tuple(rates(name, [given[i] for i in rows]) for name, given in scores.items())
    return found
