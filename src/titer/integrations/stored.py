"""A stored result as exporters read it: the only place here that knows where results and their runs are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from titer.evaluation.output import load_results
from titer.report.read import CONDITIONS, Model
from titer.report.untrusted import redacted
from titer.runs.store import Store
from titer.schema.errors import TiterError
from titer.schema.files import COMPLETIONS
from titer.schema.types import Completion, Verdict


@dataclass(frozen=True)
class Said:
    """One stored completion with the run it is of; its texts are as they may be shown."""

    record: str
    step: int
    probe: str
    index: int
    prompt: str
    text: str
    expected: str
    score: float | None
    outcome: str | None
    judge: str
    category: str
    prompt_hash: str

    @property
    def key(self) -> str:
        """What no other completion of the result is called."""
        return f"{self.record}/{self.step}/{self.probe}/{self.index}"


@dataclass(frozen=True)
class Stored:
    """One result with what its runs said; texts are redacted unless `show`."""

    model: Model
    store: Store
    show: bool = False

    @property
    def suite(self) -> str:
        """The suite by name."""
        return str(self.model.setting("suite") or "unknown")

    @property
    def dataset(self) -> str:
        """The data set of the prompts."""
        return str(self.model.setting("data", "dataset") or "unknown")

    def verdicts(self) -> list[Verdict]:
        """Every condition's verdict, those not measured too."""
        return [self.model.verdict(name) for name in CONDITIONS]

    def completions(self) -> Iterator[Said]:
        """What the runs behind the result said, run by run."""
        for record in self.model.records:
            if (self.store.folder(record) / COMPLETIONS).is_file():
                yield from (self._said(record, c) for c in self.store.completions(record))

    def _said(self, record: str, c: Completion) -> Said:
        prompt, text, expected = (t if self.show else redacted(t) for t in (c.prompt, c.text, c.target))
        digest = hashlib.sha256(f"{c.prompt}{c.target}".encode("utf-8", "surrogatepass")).hexdigest()
        value, outcome, judge = c.score.value, c.score.outcome, c.score.judge
        return Said(
            record, c.step, c.probe, c.index, prompt, text, expected, value, outcome, judge, c.category, digest
        )


def stored(path: str | Path, *, show: bool = False) -> Stored:
    """The one result of a results.json or of the folder that holds it; `TiterError` where there are several."""
    found = load_results([path])
    if len(found) > 1:
        raise TiterError(f"{path}: holds {len(found)} results: name one of its results-N.json")
    one, folder = found[0]
    if not isinstance(one, dict) or "model" not in one or "conditions" not in one:
        raise TiterError(f"{path}: no conditions in it: pass a results.json of `titer evaluate`")
    return Stored(Model(one), Store(folder), show)
