"""`examine`: everything that is measured of why a defence holds, stored as mechanism.json with its page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titer.conditions.parts.curves import Array
from titer.data.load import load
from titer.mechanism.depth import depth, drops
from titer.mechanism.estimates import mean
from titer.mechanism.geometry import Geometry, cka_of, components, refusal_of, separation_of
from titer.mechanism.lens import lens
from titer.mechanism.probes import layer, majority
from titer.mechanism.stages import completion, tone
from titer.mechanism.states import Pooled, Reader, check_alike, pooled
from titer.mechanism.texts import Texts, texts_for
from titer.mechanism.weights import drift, tasks
from titer.mechanism.which import put_back
from titer.models.load import bare, check_available, context_length, load_model, resolve
from titer.models.weights import fingerprint
from titer.report.mechanism import render
from titer.runs.provenance import command_line, environment, now, roles_of
from titer.schema.errors import TiterError
from titer.schema.files import read_json, write_json, write_text
from titer.schema.mechanism import Mechanism
from titer.schema.types import spec_id, to_json

RESULT, PAGE = "mechanism.json", "mechanism.html"
VERSION = 1
Json = dict[str, Any]


def examine(model: str, asked: Mechanism, *, output_dir: str | Path, overwrite: bool = False) -> Mapping[str, Any]:
    """Why a model holds or does not, against its reference: weights, lens, probes, geometry, depth, stages, layers.

    Writes mechanism.json and mechanism.html into `output_dir` and returns the former; what was already measured on
    the same models, data and settings is read back. At most three models are in memory: the reference, the model,
    and one of the others. Raises `TiterError` for models that cannot be loaded or are not of one architecture.
    """
    out = Path(output_dir)
    key = _identity(model, asked)
    path = out / RESULT
    if path.is_file() and not overwrite:
        stored = read_json(path)
        if isinstance(stored, dict) and stored.get("id") == key["id"]:
            return stored
    started = time.perf_counter()
    found = _Room(model, asked).measure()
    result = {**key, **found, "seconds": time.perf_counter() - started, "commands": command_line()}
    plain: Mapping[str, Any] = to_json(result)
    write_json(path, plain)
    write_text(out / PAGE, render(plain))
    return plain


def _identity(model: str, asked: Mechanism) -> Json:
    """What was asked of which models, by content; the same question has the same id."""
    names = {
        "model": model,
        "reference": asked.reference,
        "ignorant": asked.ignorant,
        "full": asked.full,
    }
    names |= {f"attacked {i + 1}": name for i, name in enumerate(asked.attacked)}
    prints = {role: _content(name) for role, name in names.items() if name}
    prints |= {"data": load(asked.data.dataset).hash}
    if asked.data.open_dataset:
        prints["open data"] = load(asked.data.open_dataset).hash
    question = {
        "kind": "mechanism",
        "version": VERSION,
        "model": model,
        "asked": to_json(asked),
        "inputs": prints,
    }
    return {"id": spec_id(question), "created": now(), "environment": environment(), **question}


def _content(name: str) -> str:
    """A model by its content; `TiterError` for one that is not there, before anything is measured."""
    plain = bare(name)
    where = resolve(plain)
    check_available(where)
    fresh = plain != name or plain == "organism/random"
    return f"random:{fingerprint(where)}" if fresh else fingerprint(where)


@dataclass(frozen=True)
class _Seen:
    """A model in memory with what was kept of its states."""

    name: str
    model: Any
    states: Pooled


class _Room:
    """The models of one question, measured in turn; labels are 1 for restricted texts and 0 for open ones."""

    def __init__(self, model: str, asked: Mechanism) -> None:
        self.name, self.asked = model, asked
        reference, self.tokenizer = self._load(asked.reference)
        self.texts: Texts = texts_for(model, asked, self.tokenizer, context_length(reference))
        self.reader = Reader(self.tokenizer.pad_token_id, asked.batch_size, asked.compute.device)
        self.rows = [*self.texts.harmful, *self.texts.benign]
        self.labels: Array = np.repeat([1.0, 0.0], [len(self.texts.harmful), len(self.texts.benign)])
        self.reference = _Seen(asked.reference, reference, pooled(reference, self.rows, self.reader))
        self.said = self._lenses(reference)

    def measure(self) -> Json:
        """Every model's measures, the reference's first."""
        defended = self._see(self.name)
        subjects = [self._subject(self.reference, "reference")]
        ignorant, others = self._ignorant()
        subjects += others
        # what the attack changed says where in its change the defence's lies
        after = self._see(self.asked.attacked[0]) if self.asked.attacked else None
        subjects.append(self._subject(defended, "model", ignorant, after))
        for name in self.asked.attacked:
            seen = after if after is not None and after.name == name else self._see(name)
            one = self._subject(seen, "attacked", ignorant)
            subjects.append(one | self._after_attack(defended, seen))
            after = None
        counts = {kind: len(rows) for kind, rows in self.texts.kinds().items()}
        roles = to_json(roles_of(self.name, self.asked.data))
        return {
            "n": counts,
            "majority": majority(self.labels),
            "roles": roles,
            "subjects": subjects,
        }

    def _load(self, name: str) -> tuple[Any, Any]:
        compute = self.asked.compute
        return load_model(name, dtype=compute.dtype, device=compute.device)

    def _see(self, name: str) -> _Seen:
        model, _ = self._load(name)
        check_alike(model, self.reference.model, name)
        return _Seen(name, model, pooled(model, self.rows, self.reader))

    def _ignorant(self) -> tuple[Array | None, list[Json]]:
        """What the ignorant model lacks at each layer, and its own measures."""
        if not self.asked.ignorant:
            return None, []
        seen = self._see(self.asked.ignorant)
        lacks = self._drops(seen)
        return lacks, [self._subject(seen, "ignorant", lacks)]

    def _drops(self, seen: _Seen) -> Array:
        if not self.asked.full or self.asked.full == self.asked.reference:
            return drops(self.reference.model, seen.model, self.texts.harmful, self.reader)
        full, _ = self._load(self.asked.full)
        check_alike(full, self.reference.model, self.asked.full)
        return drops(full, seen.model, self.texts.harmful, self.reader)

    def _subject(self, seen: _Seen, role: str, ignorant: Array | None = None, after: _Seen | None = None) -> Json:
        """What is measured of every model, and of all but the reference against it."""
        said = self.said if seen is self.reference else self._lenses(seen.model)
        alone: Json = {
            "name": seen.name,
            "role": role,
            "lens": {kind: _means(table) for kind, table in said.items()},
            "completion": [
                completion(seen.model, self.tokenizer, self.texts.restricted, words, self.asked.grading)
                for words in self.asked.forced
            ],
            "probes": self._probes(seen),
            "geometry": self._geometry(seen),
        }
        if role == "reference":
            return alone
        attacked = after.model if after is not None else None
        return alone | {
            "lens_change": {kind: _means(table - self.said[kind]) for kind, table in said.items()},
            "weights": drift(seen.model, self.reference.model, attacked),
            "depth": depth(ignorant if role == "ignorant" and ignorant is not None else self._drops(seen), ignorant),
            "put_back": put_back(seen.model, self.reference.model, self.texts.harmful, self.reader),
        }

    def _after_attack(self, defended: _Seen, seen: _Seen) -> Json:
        """What an attack did to the model that it was made from."""
        found: Json = {"tasks": tasks(defended.model, self.reference.model, seen.model)}
        openings = self.texts.openings(self.asked.opening)
        if openings:
            found["tone"] = {
                "attacked into model": tone(defended.model, seen.model, openings, self.reader),
                "model into attacked": tone(seen.model, defended.model, openings, self.reader),
            }
        return found

    def _lenses(self, model: Any) -> dict[str, Array]:
        return {kind: lens(model, rows, self.reader) for kind, rows in self.texts.kinds().items()}

    def _probes(self, seen: _Seen) -> Json:
        """Per kind of state and layer: fitted on this model and on the reference."""
        found: Json = {}
        for kind in ("answer", "prompt"):
            own, base = getattr(seen.states, kind), getattr(self.reference.states, kind)
            pairs = zip(own, base, strict=True)
            found[kind] = [layer(x, x0, self.labels, self.asked.seeds) for x, x0 in pairs]
        return found

    def _geometry(self, seen: _Seen) -> Geometry:
        own, base = seen.states, self.reference.states
        points, explained = components(own.answer[-1])
        return Geometry(
            tuple(separation_of(x, self.labels) for x in own.answer),
            tuple(cka_of(x, x0) for x, x0 in zip(own.answer, base.answer, strict=True)),
            tuple(refusal_of(x, x0, self.labels) for x, x0 in zip(own.prompt, base.prompt, strict=True)),
            tuple((float(a), float(b)) for a, b in points),
            explained,
        )


def _means(table: Array) -> list[Any]:
    return [mean(layer, unit="nats a token") for layer in table]


def read_result(path: str | Path) -> Mapping[str, Any]:
    """A stored mechanism.json, or the one in a folder; `TiterError` for anything else."""
    file = Path(path) / RESULT if Path(path).is_dir() else Path(path)
    found = read_json(file)
    if not isinstance(found, dict) or found.get("kind") != "mechanism":
        raise TiterError(f"{file}: not what `titer mechanism` writes: pass its mechanism.json")
    return found
