"""The command line: every command is a thin wrapper, and imports what it does only when it runs."""

from titer.cli import align as _align
from titer.cli import attack as _attack
from titer.cli import corpus as _corpus
from titer.cli import data as _data
from titer.cli import demo as _demo
from titer.cli import evaluate as _evaluate
from titer.cli import export as _export
from titer.cli import immunize as _immunize
from titer.cli import judge as _judge
from titer.cli import ls as _ls
from titer.cli import mechanism as _mechanism
from titer.cli import organism as _organism
from titer.cli import provider as _provider
from titer.cli import results as _results
from titer.cli import search as _search
from titer.cli import study as _study
from titer.cli import zoo as _zoo
from titer.cli.app import app, main

COMMANDS = (
    *(_demo, _immunize, _attack, _evaluate, _provider, _search, _mechanism, _align, _corpus),
    *(_results, _export, _judge, _study, _zoo, _data, _ls, _organism),
)

__all__ = ["COMMANDS", "app", "main"]
