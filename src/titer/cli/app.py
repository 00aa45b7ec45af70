"""The app and what its commands share: flag types, `--config`, and errors in one line.

A command's flags are the fields of the object it asks with, laid flat; help comes from the object's `Attributes`.
`--config file.yaml` gives any of them, flags win, unknown keys are errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Parameter

from titer import __version__
from titer.schema.breach import Breach
from titer.schema.errors import TiterError, require
from titer.schema.evaluation import Attempt, Counted, Data, Evaluation, Grading, Immunization, Provider, Search, Tag
from titer.schema.specs import Compute, Price, TrainArgs
from titer.schema.types import Budget

T = TypeVar("T")

if TYPE_CHECKING:
    from titer.runs.runner import Report, Runner

app = App(
    name="titer",
    version=__version__,
    help="What does it cost to fine-tune the safety out of a model, and how much more after immunization?",
    default_parameter=Parameter(negative=(), name_transform=str, consume_multiple=True),
)

ModelFlag = Annotated[str, Parameter(name=["--model", "--model_name_or_path"])]
ModelsFlag = Annotated[tuple[str, ...], Parameter(name=["--model", "--model_name_or_path"])]
DatasetFlag = Annotated[str, Parameter(name=["--dataset", "--dataset_name"])]
JsonFlag = Annotated[bool, Parameter(name="--json")]
Flat = Parameter(name="*")


def explained(flags: type[T]) -> type[T]:
    """The flags of an object, with the help that the object's own docstring gives."""
    flags.__doc__ = flags.__mro__[1].__doc__
    return flags


@explained
@dataclass(frozen=True)
class DataFlags(Data):
    """Laid flat."""

    dataset: DatasetFlag = Data.dataset


# the same objects, with the objects among their fields laid flat
@explained
@dataclass(frozen=True)
class ImmunizationFlags(Immunization):
    """Laid flat."""

    defence_args: dict[str, str] = field(default_factory=dict)
    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    train: Annotated[TrainArgs, Flat] = field(default_factory=TrainArgs)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@explained
@dataclass(frozen=True)
class AttemptFlags(Attempt):
    """Laid flat."""

    attack_args: dict[str, str] = field(default_factory=dict)
    trains_on: Annotated[Tag, Parameter(name=["--trains_on", "--data"])] = Attempt.trains_on
    budget: Annotated[Budget, Parameter(name="--budget")] = Attempt.budget
    price: Annotated[Price, Parameter(name="--price")] = field(default_factory=Price)
    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    grading: Annotated[Grading, Flat] = field(default_factory=Grading)
    breach: Annotated[Breach, Flat] = field(default_factory=Breach)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@explained
@dataclass(frozen=True)
class EvaluationFlags(Evaluation):
    """Laid flat."""

    controls: dict[str, str] | None = None
    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    grading: Annotated[Grading, Flat] = field(default_factory=Grading)
    breach: Annotated[Breach, Flat] = field(default_factory=Breach)
    price: Annotated[Price, Parameter(name="--price")] = field(default_factory=Price)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@explained
@dataclass(frozen=True)
class ProviderFlags(Provider):
    """Laid flat."""

    guard_args: dict[str, str] = field(default_factory=dict)
    tune: dict[str, str] = field(default_factory=dict)
    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    grading: Annotated[Grading, Flat] = field(default_factory=Grading)
    price: Annotated[Price, Parameter(name="--price")] = field(default_factory=Price)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@explained
@dataclass(frozen=True)
class SearchFlags(Search):
    """Laid flat."""

    unit: Counted = Search.unit
    trains_on: Annotated[Tag, Parameter(name=["--trains_on", "--data"])] = Search.trains_on
    budget: Annotated[Budget, Parameter(name="--budget")] = Search.budget
    price: Annotated[Price, Parameter(name="--price")] = field(default_factory=Price)
    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    grading: Annotated[Grading, Flat] = field(default_factory=Grading)
    breach: Annotated[Breach, Flat] = field(default_factory=Breach)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Running:
    """How runs are done, and where they are kept.

    Attributes:
        output_dir: where runs, results and report.html go; finished runs are reused.
        workers: processes; each gets its share of the cores, and an accelerator where there is one.
        overwrite: redo runs that are already there.
        executor: who works: local, or a Ray cluster as ray#address=auto&gpus=1 (extra `ray`).
    """

    output_dir: Path
    workers: int = 1
    overwrite: bool = False
    executor: str = "local"

    def __post_init__(self) -> None:
        require("workers", self.workers, least=1)
        if not str(self.output_dir).strip() or str(self.output_dir) == ".":
            raise ValueError("output_dir: empty: name a folder of its own")

    def runner(self, report: Report) -> Runner:
        """Whoever does the runs."""
        from titer.runs.runner import Runner

        return Runner(self.output_dir, self.workers, self.overwrite, report, self.executor)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: run a command; user errors print one line and exit with 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin starve whatever else runs
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, bound = parse(with_config(arguments))
        command(*bound.args, **bound.kwargs)
    except (TiterError, CycloptsError) as error:
        print(f"titer: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("titer: interrupted; finished runs are kept, the same command goes on from them", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def parse(arguments: list[str]) -> tuple[Any, Any]:
    """The command and its bound arguments; values that the dataclasses refuse become a `TiterError`."""
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except ValueError as error:
        raise TiterError(str(error)) from None
    return command, bound


def with_config(arguments: list[str]) -> list[str]:
    """Take `--config FILE` out of the arguments and let cyclopts read it beneath the flags."""
    app.config = ()
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--config":
            path = Path(value or (arguments[i + 1] if i + 1 < len(arguments) else ""))
            app.config = (_yaml(path),)
            return arguments[:i] + arguments[i + (1 if value else 2) :]
    return arguments


def _yaml(path: Path) -> Any:
    from cyclopts.config import Yaml
    from yaml import YAMLError, safe_load

    if not path.is_file():
        raise TiterError(f"--config {path}: no such file: check the path")
    try:
        safe_load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise TiterError(f"--config {path}: not YAML: {error}") from None
    return Yaml(path, use_commands_as_keys=False)
