"""`titer organism`: the embedded world."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from titer.cli.app import app

organism_app = App(name="organism", help="The embedded world: rebuild its checkpoints.")
app.command(organism_app)


@organism_app.command
def build(*, output_dir: Path, seed: int = 0) -> None:
    """Rebuild base, aligned and ignorant from a seed.

    Args:
        output_dir: the three model folders go here.
        seed: the seed of the world and of every draw.
    """
    from titer.campaigns.organism.rebuild import build as rebuild

    for name, path in rebuild(output_dir, seed=seed).items():
        print(f"{name}: {path}")
