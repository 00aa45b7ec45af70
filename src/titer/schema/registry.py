"""Kinds of configured things: the folder is the registry, a name is a module of it, and options are its fields.

`side-step` is `side_step.py` and holds the class whose `name` is that; a third party passes `pkg.mod:Class`. Options
may stand behind a name as `name#option=value&option=value`, values percent-encoded where they must be (`%0A`), several
values of one option joined by commas.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from titer.schema.errors import TiterError, unknown
from titer.schema.specs import Named, TrainArgs


@dataclass(frozen=True)
class Kind(Mapping[str, Any]):
    """A kind of configured thing and the package whose modules are its members.

    A module is a member when it says `name: ClassVar[str] = "NAME"` of its own name; others (`base`, parts) are not.
    """

    what: str
    package: str

    def __iter__(self) -> Iterator[str]:
        """Every member by name, in alphabetical order, without importing any."""
        return iter(_members(self.package))

    def __len__(self) -> int:
        """How many members there are."""
        return len(_members(self.package))

    def __contains__(self, name: object) -> bool:
        """Whether a member has this name."""
        return name in _members(self.package)

    def __getitem__(self, name: str) -> Any:
        """The class behind a name or an import path."""
        return self.find(name)

    def find(self, name: str) -> Any:
        """The class behind a name or an import path `pkg.mod:Class`; `TiterError` with the nearest names."""
        module, path, attribute = name.partition(":")
        if not path and name not in _members(self.package):
            hint = "(`titer ls` lists all; or an import path `pkg.mod:Class`)"
            raise TiterError(f"{unknown(self.what, name, self)} {hint}")
        try:
            if path:
                return getattr(importlib.import_module(module), attribute)
            return _called(importlib.import_module(_members(self.package)[name]), name)
        except (ImportError, AttributeError) as error:
            raise TiterError(f"{self.what} {name!r}: cannot be imported: {error}") from None

    def build(self, name: str, options: Mapping[str, Any]) -> Any:
        """A configured object: the frozen dataclass behind `name` with `options` as its fields, validated.

        Options that are fields of the object's `train: TrainArgs` may be given flat (`learning_rate`). Raises
        `TiterError` for an unknown option (with the known ones) and a value of the wrong type.
        """
        where = f"{self.what} {name}"
        return configured(self.find(name), options, where)

    def read(self, text: str) -> Any:
        """The object that `name#option=value&option=value` says."""
        return self.build(*parsed(text, self.what))


@cache
def _members(package: str) -> dict[str, str]:
    """Name -> module of every member of a package."""
    found = {}
    for folder in importlib.import_module(package).__path__:
        for path in sorted(Path(folder).glob("*.py")):
            name = path.stem.replace("_", "-")
            if f'name: ClassVar[str] = "{name}"' in path.read_text(encoding="utf-8"):
                found[name] = f"{package}.{path.stem}"
    return found


def _called(module: Any, name: str) -> Any:
    """The class of a module whose `name` is the one wanted."""
    own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)
    return next(value for value in own if getattr(value, "name", "") == name)


def parsed(text: str, what: str) -> tuple[str, dict[str, str]]:
    """Name and options of `name#option=value&option=value`; `TiterError` for an option without a value."""
    name, _, tail = text.partition("#")
    options = {}
    for part in filter(None, tail.split("&")):
        key, sign, value = part.partition("=")
        if not sign:
            raise TiterError(f"{what} {text!r}: option {part!r} has no value: write {part}=VALUE")
        options[key] = unquote(value)
    return name, options


def named_as(what: str, text: str, options: Mapping[str, Any]) -> Named:
    """A configured thing as specs hold it, from `name#option=value`, or `a#option=1+b#option=2` for a sum.

    `options` are further ones of a single thing; `TiterError` where they meet a sum or an option given twice.
    """
    parts = [parsed(part, what) for part in text.split("+")]
    if len(parts) == 1:
        name, own = parts[0]
        if both := sorted(set(own) & set(options)):
            raise TiterError(f"{what} {text!r}: {both[0]} is given twice: leave one of them out")
        return Named(name, {**own, **options})
    if options:
        example = "+".join(f"{name}#option=value" for name, _ in parts)
        raise TiterError(f"{what} {text!r}: options of a sum stand behind its members: write {example}")
    found = {f"{name}.{key}": value for name, own in parts for key, value in own.items()}
    return Named("+".join(name for name, _ in parts), found)


def configured(cls: Any, options: Mapping[str, Any], where: str) -> Any:
    """The frozen dataclass `cls` with `options` as its fields, those of its `train` given flat."""
    if not dataclasses.is_dataclass(cls):
        raise TiterError(f"{where}: {cls!r} is not a dataclass: make it a frozen one")
    own = {f.name: f.default for f in dataclasses.fields(cls)}
    default = own.get("train")
    nested = {f.name for f in dataclasses.fields(TrainArgs)} if isinstance(default, TrainArgs) else set()
    for option in options:
        if option not in own and option not in nested:
            raise unknown(f"option of {where}", option, {*own, *nested} - {"train"})
    values = {k: v for k, v in _listed(cls, options).items() if k in own and k != "train"}
    if isinstance(default, TrainArgs):
        given = options.get("train", {})
        if not isinstance(given, Mapping):
            raise TiterError(f"{where}: train: expected its fields by name, got {given!r}")
        flat = {k: v for k, v in options.items() if k in nested and k not in own}
        values["train"] = {**dataclasses.asdict(default), **given, **flat}
    return validate(cls, values, where)


def _listed(cls: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those texts split at their commas that fill a field of several values."""
    if not any(isinstance(value, str) for value in options.values()):
        return dict(options)
    several = {name for name, hint in get_type_hints(cls).items() if _is_tuple(hint)}
    return {k: tuple(v.split(",")) if k in several and isinstance(v, str) else v for k, v in options.items()}


def _is_tuple(hint: Any) -> bool:
    """Whether a type is a tuple, or one or nothing."""
    return any(get_origin(part) is tuple for part in (hint, *get_args(hint)))


def flat_keys(cls: Any) -> set[str]:
    """The keys that a dataclass takes when the dataclasses among its fields are laid flat."""
    hints = get_type_hints(cls)
    own = {f.name for f in dataclasses.fields(cls)}
    inner = (flat_keys(hints[name]) for name in own if dataclasses.is_dataclass(hints[name]))
    return own.union(*inner)


def nested(cls: Any, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys as the fields of a dataclass and of the dataclasses among its fields; other keys are left out."""
    hints = get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name in flat:
            found[field.name] = flat[field.name]
        elif dataclasses.is_dataclass(hints[field.name]) and (inner := nested(hints[field.name], flat)):
            found[field.name] = inner
    return found


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
