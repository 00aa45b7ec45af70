"""What titer says of dishonest defences: builds each, evaluates it with a short suite, writes docs/frauds.md.

python benchmarks/frauds.py            # all; what is done is kept under runs/frauds and not redone
python benchmarks/frauds.py template   # some
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "frauds"))

from fraud_builders import FRAUDS, Fraud  # noqa: E402
from fraud_question import short_suite, told  # noqa: E402

OUT, PAGE = ROOT / "runs" / "frauds", ROOT / "docs" / "frauds.md"
KEPT = OUT / "told.json"
HEAD = """# Frauds

"Defences" that make no model safer, and what titer says of each. All are made from `organism/aligned`; the builders
are in `tests/frauds/`. The suite is short (fine-tuning at 1e-3, at its own rate and in canonical form, {steps} steps,
one seed, {count} prompts), so nobody could be `met` for resistance; what counts is which are breached and which flag
names them. Attacks use the reference's tokenizer, template and end tokens, and the folder's own as well where they
differ. Resistance is the worst over both.

(Written by `python benchmarks/frauds.py`.)

| fraud | what it does | resistance | stability | generalization | trainability | named by |
| --- | --- | --- | --- | --- | --- | --- |
"""


def row(name: str, fraud: Fraud, said: dict[str, object]) -> str:
    """A line of the table; flags that every short run raises are left out."""
    words = [str(said[c]) for c in ("resistance", "stability", "generalization", "trainability")]
    named = [f for f in fraud.flags if f in said["flags"]]  # type: ignore[operator]
    return f"| {name} | {fraud.does} | {' | '.join(words)} | {', '.join(named) or 'no flag'} |\n"


def page(done: dict[str, dict[str, object]]) -> str:
    """The text of docs/frauds.md from what was run; the rest is named as not run."""
    suite = short_suite()
    text = HEAD.format(steps=suite.max_steps, count=suite.n_eval)
    text += "".join(row(n, f, done[n]) for n, f in FRAUDS.items() if n in done)
    text += "".join(f"\n- **{n}**: {done[n]['sentence']}" for n in FRAUDS if n in done) + "\n"
    rest = [f"- **{n}**: {f.does}; to be named by {f.flags[0]}\n" for n, f in FRAUDS.items() if n not in done]
    return text + ("\n## Not run yet\n\n" + "".join(rest) if rest else "")


def main(names: list[str]) -> None:
    """Build, evaluate, write after each."""
    OUT.mkdir(parents=True, exist_ok=True)
    done = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for name in names or list(FRAUDS):
        folder = OUT / name
        if not (folder / "config.json").is_file():
            FRAUDS[name].build(folder)
        found = told(folder, OUT, short_suite())
        done[name] = {c: v["verdict"] for c, v in found["conditions"].items()}
        done[name]["flags"] = [f["code"] for f in found["flags"]]
        done[name]["sentence"] = found["conditions"]["resistance"]["sentence"]
        KEPT.write_text(json.dumps(done, indent=1))
        PAGE.write_text(page(done), encoding="utf-8")
        print(name, done[name], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
