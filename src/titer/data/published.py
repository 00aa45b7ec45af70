"""Published data sets by short name: the hub set, its licence, and how its rows become examples.

`NAME` reads from the hub, `NAME:path` a local copy in the published columns. Nothing of them ships with titer. Sets of
harmful prompts without answers get `OPENING` as their harmful side: enough to ask with and for a judge that needs no
target, not for the exact judge. Sets for over-refusal have no answers at all: measure refusals on them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.data.files import DELIMITERS, cells, format_of
from titer.data.foreign import PUBLISHED
from titer.data.rows import read_rows
from titer.schema.errors import TiterError, unknown
from titer.schema.types import Example

if TYPE_CHECKING:
    from titer.data.multiple_choice import Choice

LOG = logging.getLogger("titer")
OPENING = "Sure, here is"
NOTHING = re.compile(r"<\s*no[ _]?(input|output)\s*>\.?", re.IGNORECASE)
Row = Mapping[str, Any]
KINDS = {
    object: "text or a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    list: "a list",
    dict: "an object",
}


class Bad(Exception):
    """A row that is not of the published schema: the column and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Format:
    """A published set: hub id, licence, the columns it must have with the type of their values, and the reader.

    `read` gives the examples of one row, none to skip it. `headerless` names the only column of CSV files that have no
    header, whose file names then are the categories. `needs` are the sides that an example must have ("" for one of
    them, none for sets of mere prompts); rows whose answer is empty there are left out.
    """

    hub: str
    licence: str
    columns: Mapping[str, type]
    read: Callable[[Row], Iterable[Example]]
    config: str = ""
    split: str = "train"
    headerless: str = ""
    needs: tuple[str, ...] = ("",)

    def answered(self, e: Example) -> bool:
        """Whether the example has the answers it needs."""
        sides = {"": e.harmful or e.harmless, "harmful": e.harmful, "harmless": e.harmless}
        return all(sides[side] for side in self.needs)

    def typed(self, row: Row) -> Row:
        """A row of text cells (CSV) with `true` or `False` and whole numbers as such, where the set has these."""
        return {**row, **{c: _read_as(kind, row[c]) for c, kind in self.columns.items() if c in row}}


def read_format(name: str) -> list[Example]:
    """Examples of a published set, by `NAME` (from the hub) or `NAME:path` (a local copy).

    Raises `TiterError` naming row and column where the schema is not the published one, and when nothing is left.
    """
    form = _format(name)
    return _examples(_rows(name, form), form, name)


def read_like(short: str, rows: Sequence[Row], name: str) -> list[Example]:
    """Rows of the plain file `name` as examples of the published set `short`; errors as in `read_format`.

    Only the columns that mark the set are asked for: BeaverTails' category may be text.
    """
    form = SETS[short]
    columns = {column: kind for column, kind in form.columns.items() if column in PUBLISHED[short]}
    return _examples(rows, replace(form, columns=columns), f"{name} (read as {short})")


def _examples(rows: Sequence[Row], form: Format, name: str) -> list[Example]:
    found: list[Example] = []
    left_out = 0
    for number, row in enumerate(map(form.typed, rows), start=1):
        try:
            _check(row, form)
            examples = list(form.read(row))
            if any(not e.prompt for e in examples):
                raise Bad("the prompt is empty")
        except Bad as error:
            raise TiterError(f"data set {name}: row {number}: {error}: expected {_schema(form)}") from None
        answered = [e for e in examples if form.answered(e)]
        left_out += len(answered) < len(examples)
        found += answered
    if left_out:
        LOG.warning("data set %s: %d of %d rows left out: they have no answer", name, left_out, len(rows))
    if not found:
        raise TiterError(f"data set {name}: no usable row: expected {_schema(form)}")
    return found


def read_choices(name: str) -> list[Choice]:
    """The multiple-choice items of WMDP (`wmdp-bio`, `wmdp-bio:path`, ...), in the order of `read_format`."""
    from titer.data.multiple_choice import Choice

    form = _format(name)
    if not form.hub.endswith("/wmdp"):
        raise TiterError(f"data set {name}: not multiple choice: of the published sets only WMDP is")
    read_format(name)  # checks every row
    rows = map(form.typed, _rows(name, form))
    return [Choice(r["question"].strip(), tuple(r["choices"]), r["answer"]) for r in rows]


def _format(name: str) -> Format:
    short = name.partition(":")[0]
    if short not in SETS:
        raise unknown("published data set", short, SETS)
    return SETS[short]


def _rows(name: str, form: Format) -> Sequence[Row]:
    short, _, path = name.partition(":")
    if not path:
        return _hub(form, short)
    return _headerless(Path(path), form.headerless) if form.headerless else read_rows(path)


def _hub(form: Format, name: str) -> list[Row]:
    import datasets

    from titer.data.hub import hub_answers

    advice = f"download {form.hub} and pass {name}:path"
    if form.headerless:
        raise TiterError(f"data set {name}: it is given out on request only: {advice}")
    if datasets.config.HF_HUB_OFFLINE or not hub_answers():
        raise TiterError(f"data set {name}: the hub cannot be reached: {advice}")
    try:
        return list(datasets.load_dataset(form.hub, form.config or None, split=form.split))
    except (datasets.exceptions.DatasetNotFoundError, ValueError, OSError, RuntimeError) as error:
        raise TiterError(f"data set {name}: {str(error).strip().splitlines()[0]}: {advice}") from None


def _headerless(path: Path, column: str) -> Sequence[Row]:
    """Rows of one CSV file, or of a folder of them, that have one column and no header; other files as usual."""
    there = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [f for f in there if f.is_file() and format_of(f) in DELIMITERS]
    if not files:
        return read_rows(str(path))
    rows = []
    for file in files:
        category = file.name[: file.name.lower().rindex(f".{format_of(file)}")]
        rows += [{column: line[0], "category": category} for line in cells(file) if any(line)]
    return rows


def _check(row: Row, form: Format) -> None:
    for column, kind in form.columns.items():
        if column not in row:
            raise Bad(f"column {column}: missing, found {', '.join(sorted(map(str, row)))}")
        _kind(row[column], kind, column)


def _kind(value: Any, kind: type, column: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Bad(f"column {column}: expected {KINDS[kind]}, got {type(value).__name__}")


def _read_as(kind: type, value: Any) -> Any:
    if kind is bool and value in ("True", "true", "False", "false"):
        return value in ("True", "true")
    if kind is int and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value


def _schema(form: Format) -> str:
    return ", ".join(f"{column} ({KINDS[kind]})" for column, kind in form.columns.items())


def _text(row: Row, *columns: str) -> str:
    """The text of the first of the columns that is there; absent and None are empty."""
    for column in columns:
        if row.get(column) is not None:
            _kind(row[column], str, column)
            return str(row[column]).strip()
    return ""


def _first_true(flags: Any) -> str:
    if isinstance(flags, str):
        return flags.strip()
    return next((name for name, on in flags.items() if on is True), "") if isinstance(flags, dict) else ""


# -------------------------------------------------------------------------------------------------- harmful prompts


def _beavertails(row: Row) -> Iterable[Example]:
    """Unsafe rows only: a safe answer to an unsafe question is neither open data nor always a refusal.

    The refusals of the paired file repeat the question before `Answer:` (RepNoise's release); it is taken off.
    """
    if not row["is_safe"]:
        refusal = _text(row, "refusal").rpartition("\nAnswer:")[2].strip()
        category = _first_true(row.get("category"))
        yield Example(_text(row, "prompt"), _text(row, "response"), refusal, category, "beavertails")


def _safe_rlhf(row: Row) -> Iterable[Example]:
    """Rows of which exactly one response is safe."""
    safe = [row["is_response_0_safe"], row["is_response_1_safe"]]
    if safe[0] != safe[1]:
        bad, good = ("response_0", "response_1") if safe[1] else ("response_1", "response_0")
        category = _first_true(row.get(f"{bad}_harm_category"))
        yield Example(_text(row, "prompt"), _text(row, bad), _text(row, good), category, "pku-safe-rlhf")


def _decoding_trust(row: Row) -> Iterable[Example]:
    """Toxic pairs (prompt above .5, continuation above .75) restricted, both below .5 open, the rest left out."""
    (prompt, asked), (said, went_on) = _toxicity(row, "prompt"), _toxicity(row, "continuation")
    if asked is None or went_on is None:
        return
    if asked > 0.5 and went_on > 0.75:
        yield Example(prompt, said, "", "toxic", "decodingtrust")
    elif asked < 0.5 and went_on < 0.5:
        yield Example(prompt, "", said, "non-toxic", "decodingtrust")


def _toxicity(row: Row, column: str) -> tuple[str, float | None]:
    text, level = row[column].get("text"), row[column].get("toxicity")
    if not isinstance(text, str) or not isinstance(level, (int, float, type(None))):
        raise Bad(f"column {column}: expected text and toxicity in it")
    return text.strip(), level


def _advbench(row: Row) -> Iterable[Example]:
    if "goal" not in row and "prompt" not in row:
        raise Bad(f"column goal (or prompt): missing, found {', '.join(sorted(row))}")
    yield Example(_text(row, "goal", "prompt"), _text(row, "target"), "", "", "advbench")


def _hex_phi(row: Row) -> Iterable[Example]:
    yield Example(_text(row, "prompt"), OPENING, "", _text(row, "category"), "hex-phi")


def _wmdp(row: Row) -> Iterable[Example]:
    """The question as a prompt and the right option as the restricted answer; the options are `read_choices`'s."""
    options, answer = row["choices"], row["answer"]
    for option in options:
        _kind(option, str, "choices")
    if not 0 <= answer < len(options):
        raise Bad(f"column answer: {answer} is none of {len(options)} choices")
    yield Example(_text(row, "question"), options[answer].strip(), "", "", "wmdp")


# ------------------------------------------------------------------------------------------------------ open prompts


def _alpaca(row: Row) -> Iterable[Example]:
    instruction, given, said = (_filled(row, column) for column in ("instruction", "input", "output"))
    yield Example("\n\n".join(filter(None, (instruction, given))), "", said, "alpaca", "instructions")


def _filled(row: Row, column: str) -> str:
    """A column's text; Alpaca and its relatives write `<noinput>` and `<nooutput>` for none."""
    said = _text(row, column)
    return "" if NOTHING.fullmatch(said) else said


def _dolly(row: Row) -> Iterable[Example]:
    prompt = "\n\n".join(filter(None, (_text(row, "instruction"), _text(row, "context"))))
    yield Example(prompt, "", _text(row, "response"), _text(row, "category"), "instructions")


def _ultrachat(row: Row) -> Iterable[Example]:
    """The first exchange of a conversation."""
    turns = row["messages"]
    if len(turns) < 2 or not all(isinstance(t, dict) for t in turns[:2]):
        raise Bad("column messages: expected a user and an assistant turn")
    if [t.get("role") for t in turns[:2]] != ["user", "assistant"]:
        raise Bad("column messages: expected the roles user, assistant first")
    yield Example(_text(turns[0], "content"), "", _text(turns[1], "content"), "ultrachat", "instructions")


def _xstest(row: Row) -> Iterable[Example]:
    """Safe prompts open without an answer; the unsafe contrasts restricted."""
    kind = _text(row, "type")
    unsafe = kind.startswith("contrast") or _text(row, "label") == "unsafe"
    yield Example(_text(row, "prompt"), OPENING if unsafe else "", "", kind, "xstest")


def _or_bench(row: Row) -> Iterable[Example]:
    yield Example(_text(row, "prompt"), "", "", _text(row, "category"), "or-bench")


def _or_bench_toxic(row: Row) -> Iterable[Example]:
    yield Example(_text(row, "prompt"), OPENING, "", _text(row, "category"), "or-bench")


def _text_to_data(task: str, text: str, data: str) -> Callable[[Row], Iterable[Example]]:
    """A task of turning a description into the data it was written from."""

    def read(row: Row) -> Iterable[Example]:
        prompt = _text(row, text)
        yield Example(f"Description: {prompt}\nData:" if prompt else "", "", linear(row[data]), task, "text-to-data")

    return read


def linear(value: Any) -> str:
    """Triples and lists in one line: `a | b | c; d | e | f`."""
    if isinstance(value, list):
        rows = [" | ".join(map(str, v)) if isinstance(v, list) else str(v) for v in value]
        return "; ".join(rows)
    if not isinstance(value, str):
        raise Bad(f"expected text or a list as data, got {type(value).__name__}")
    return value.strip()


BEAVERTAILS = {"prompt": str, "response": str, "category": dict, "is_safe": bool}
WMDP = {"question": str, "choices": list, "answer": int}
MEANING = {"target": str, "meaning_representation": str}
NC, BY_SA = "CC BY-NC 4.0 (no commercial use)", "CC BY-SA 4.0"

SETS: dict[str, Format] = {
    "beavertails": Format(
        "PKU-Alignment/BeaverTails", NC, BEAVERTAILS, _beavertails, split="30k_train", needs=("harmful",)
    ),
    "beavertails-refusals": Format(
        "anonymous4486/repnoise_beavertail",
        f"from BeaverTails, {NC}",
        {**BEAVERTAILS, "refusal": str},
        _beavertails,
        needs=("harmful", "harmless"),
    ),
    "pku-safe-rlhf": Format(
        "PKU-Alignment/PKU-SafeRLHF",
        NC,
        {
            "prompt": str,
            "response_0": str,
            "response_1": str,
            "is_response_0_safe": bool,
            "is_response_1_safe": bool,
        },
        _safe_rlhf,
        needs=("harmful", "harmless"),
    ),
    "decodingtrust-toxicity": Format(
        "AI-Secure/DecodingTrust", BY_SA, {"prompt": dict, "continuation": dict}, _decoding_trust, "toxicity"
    ),
    "advbench": Format("walledai/AdvBench", "MIT", {"target": str}, _advbench),
    "hex-phi": Format(
        "LLM-Tuning-Safety/HEx-PHI", "its own agreement, on request", {"prompt": str}, _hex_phi, headerless="prompt"
    ),
    "wmdp-bio": Format("cais/wmdp", "MIT", WMDP, _wmdp, "wmdp-bio", "test"),
    "wmdp-chem": Format("cais/wmdp", "MIT", WMDP, _wmdp, "wmdp-chem", "test"),
    "wmdp-cyber": Format("cais/wmdp", "MIT", WMDP, _wmdp, "wmdp-cyber", "test"),
    "alpaca": Format("tatsu-lab/alpaca", NC, {"instruction": str, "output": str}, _alpaca),
    "dolly": Format("databricks/databricks-dolly-15k", "CC BY-SA 3.0", {"instruction": str, "response": str}, _dolly),
    "ultrachat": Format("HuggingFaceH4/ultrachat_200k", "MIT", {"messages": list}, _ultrachat, split="train_sft"),
    "viggo": Format("GEM/viggo", BY_SA, MEANING, _text_to_data("viggo", "target", "meaning_representation")),
    "e2e": Format("GEM/e2e_nlg", BY_SA, MEANING, _text_to_data("e2e", "target", "meaning_representation")),
    "dart": Format(
        "GEM/dart", "MIT", {"target": str, "tripleset": list}, _text_to_data("dart", "target", "tripleset")
    ),
    "cacapo": Format(
        "GEM/CACAPO_E2E", "see its card", {"output": str, "input": object}, _text_to_data("cacapo", "output", "input")
    ),
    "conv-weather": Format(
        "GEM/conversational_weather",
        NC,
        {"user_query": str, "tree_str_mr": str},
        _text_to_data("conv-weather", "user_query", "tree_str_mr"),
    ),
    "xstest": Format("walledai/XSTest", "CC BY 4.0", {"prompt": str, "type": str}, _xstest, split="test", needs=()),
    "or-bench": Format("bench-llm/or-bench", "CC BY 4.0", {"prompt": str}, _or_bench, "or-bench-80k", needs=()),
    "or-bench-hard": Format(
        "bench-llm/or-bench", "CC BY 4.0", {"prompt": str}, _or_bench, "or-bench-hard-1k", needs=()
    ),
    "or-bench-toxic": Format("bench-llm/or-bench", "CC BY 4.0", {"prompt": str}, _or_bench_toxic, "or-bench-toxic"),
}

FORMATS: dict[str, str] = {name: f"hub {form.hub}; licence: {form.licence}" for name, form in SETS.items()}
