"""Your own restricted set from a JSONL file: defend some categories, attack with one that was withheld.

    python examples/own_data.py OUT

The file written here holds a part of the embedded world; replace it with yours (columns prompt, harmful, harmless,
category, domain; rows without `harmful` are open data).
"""

from __future__ import annotations

import sys
from pathlib import Path

import titer
from titer.data.load import load, save_jsonl


def main(output_dir: Path, steps: int = 50) -> None:
    rows = [e for e in load("organism").examples if e.domain == "qa"]
    data = output_dir / "my_data.jsonl"
    save_jsonl(rows, data)
    defended = output_dir / "defended"
    mine = titer.Data(str(data), withhold=("curses",))
    train = titer.TrainArgs(learning_rate=3e-4, max_steps=steps)
    asked = titer.Immunization("adversarial-loss", data=mine, train=train)
    titer.immunize("organism/aligned", asked, output_dir=defended)
    budget = titer.Budget(steps=min(steps, 20))
    for tag in ("unseen", "withheld"):
        attempt = titer.Attempt(data=titer.Data(str(data)), trains_on=tag, budget=budget, seeds=(0,), n_eval=15)
        found = titer.attack(str(defended), attempt, output_dir=output_dir)
        print(f"{tag}: harm {found.curves[0].points[-1].mean('harm'):.2f} after {budget.steps} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/own-data"))
