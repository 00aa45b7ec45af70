"""`titer corpus`: what a model may still say, by its own refusals, for the defence `clean-room`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from titer.cli.app import DataFlags, Flat, JsonFlag, ModelFlag, app
from titer.cli.text import print_json
from titer.schema.specs import Compute


@dataclass(frozen=True)
class CorpusFlags:
    """What is built, and from what.

    Attributes:
        base_model: the model before its alignment, which the free texts are sampled from.
        texts: free texts to sample (most are said more than once).
        rounds: times that every text not yet allowed is asked for.
        copies: repeat-after-me rows to try.
        seed: of the sampling, the order of training and the copying rows.
    """

    base_model: str
    texts: int = 5000
    rounds: int = 2
    copies: int = 200
    seed: int = 0
    data: Annotated[DataFlags, Flat] = field(default_factory=DataFlags)
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@app.command
def corpus(
    *,
    model: ModelFlag,
    output_dir: Path,
    asked: Annotated[CorpusFlags, Parameter(name="*")],
    as_json: JsonFlag = False,
) -> None:
    """Build the corpus of an aligned model: texts that its own answers allow, none of them in the evaluation split.

    Then: titer immunize --defence clean-room --defence_args.corpus DIR

    Args:
        model: the aligned model.
        output_dir: the corpus goes here, with retain.jsonl for other defences.
        as_json: print what is known of the corpus as JSON.
    """
    from titer.campaigns.cleanroom.asking import CorpusArgs
    from titer.campaigns.cleanroom.builder import build_corpus
    from titer.data.roles import assign

    args = CorpusArgs(texts=asked.texts, rounds=asked.rounds, copies=asked.copies, seed=asked.seed)
    found = build_corpus(
        asked.base_model,
        model,
        assign(asked.data),
        output_dir,
        args=args,
        dtype=asked.compute.dtype,
        device=asked.compute.device,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        return print_json(found.about)
    print(f"{len(found.rows)} rows, audited: {output_dir}")
