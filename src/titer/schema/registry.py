"""Turn a name and options into a configured object: literal dicts of import paths, or a third party's own path."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from titer.schema.errors import TiterError, unknown
from titer.schema.specs import TrainArgs


def find(kind: str, registry: Mapping[str, Any], name: str) -> Any:
    """The class behind a registry name or an import path `pkg.mod:Class`; `TiterError` with the nearest names.

    A registry holds classes, or import paths where the class is heavy to import.
    """
    path = registry.get(name, name if ":" in name else "")
    if not path:
        raise TiterError(f"{unknown(kind, name, registry)} (`titer ls` lists all; or an import path `pkg.mod:Class`)")
    if isinstance(path, type):
        return path
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TiterError(f"{kind} {name!r}: cannot be imported: {error}") from None


def build(kind: str, registry: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> Any:
    """A configured object: the frozen dataclass behind `name` with `options` as its fields, validated.

    Options that are fields of the object's `train: TrainArgs` may be given flat (`learning_rate`). Raises `TiterError`
    for an unknown option (with the known ones) and a value of the wrong type.
    """
    cls = find(kind, registry, name)
    if not dataclasses.is_dataclass(cls):
        raise TiterError(f"{kind} {name!r}: {cls!r} is not a dataclass: make it a frozen one")
    own = {f.name: f.default for f in dataclasses.fields(cls)}
    default = own.get("train")
    nested = {f.name for f in dataclasses.fields(TrainArgs)} if isinstance(default, TrainArgs) else set()
    for option in options:
        if option not in own and option not in nested:
            raise unknown(f"option of {kind} {name}", option, {*own, *nested} - {"train"})
    values = {k: v for k, v in options.items() if k in own and k != "train"}
    if isinstance(default, TrainArgs):
        given = options.get("train", {})
        if not isinstance(given, Mapping):
            raise TiterError(f"{kind} {name}: train: expected its fields by name, got {given!r}")
        flat = {k: v for k, v in options.items() if k in nested and k not in own}
        values["train"] = {**dataclasses.asdict(default), **given, **flat}
    return validate(cls, values, f"{kind} {name}")


def validate(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """`cls(**values)` with types checked and converted; `TiterError` naming the first bad value."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(dict(values), extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(p) for p in first["loc"])
        given = "" if isinstance(first["input"], Mapping) else f", got {first['input']!r}"
        told = first["msg"].removeprefix("Value error, ") + given
        raise TiterError(": ".join(filter(None, (where, path, told)))) from None


def split_options(names: Sequence[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of a sum, given as `member.option`, by member; `TiterError` for one that names no member."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        member, dot, option = key.partition(".")
        if not dot or member not in found:
            raise TiterError(f"defence {'+'.join(names)}: option {key!r} must be written MEMBER.option")
        found[member][option] = value
    return found
