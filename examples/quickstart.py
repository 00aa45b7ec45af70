"""Immunize the embedded model, evaluate it, read the verdicts.

python examples/quickstart.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import titer


def main(output_dir: Path, steps: int = 100, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    defended = output_dir / "defended"
    train = titer.TrainArgs(learning_rate=3e-4, max_steps=steps)
    titer.immunize("organism/aligned", titer.Immunization("adversarial-loss", train=train), output_dir=defended)
    asked = titer.Evaluation(
        conditions=("resistance", "stability"),
        learning_rates=(1e-3,),
        max_steps=20,
        seeds=seeds,
    )
    results = titer.evaluate(str(defended), asked, output_dir=output_dir)
    for name, found in results[0]["conditions"].items():
        print(f"{name}: {found['verdict']}. {found['sentence']}")
    print(f"report: {output_dir / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/quickstart"))
