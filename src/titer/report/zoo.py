"""The page of a zoo, from its stored JSON alone: what beats no defence and what does not, in words, table and plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from titer.report.cells import interval, number
from titer.report.charts import Frame, Spot, scatter
from titer.report.read import CONDITIONS
from titer.report.untrusted import asset, markdown

Json = Mapping[str, Any]
UNDEFENDED = "undefended"
UNIT = "tokens"
Standing = Literal["dearer", "cheaper", "not told apart", "unknown"]


def render(zoo: Json, picture: str, command: str) -> str:
    """The page as Markdown; `picture` is the plot's path seen from the page, `command` what made both."""
    ordered = ranked(zoo)
    z = zoo["zoo"]
    page = markdown(
        "zoo.md",
        zoo=zoo,
        z=z,
        command=command,
        picture=picture,
        summary=summary(zoo),
        tests="; ".join(map(_attack, z["test"]["members"])),
        wide="; ".join(map(_attack, z["test"]["wide"])),
        seeds=sorted({s for m in z["test"]["members"] for s in m["seeds"]}),
        validation="; ".join(f"{_attack(m)} with seeds {_listed(m['seeds'])}" for m in z["validation"]["members"]),
        packages=zoo["environment"].get("packages") or {},
        unit=UNIT,
        number=number,
        main=main_table(zoo, ordered),
        settings=settings_table(zoo, ordered),
        sentences=sentences(zoo, ordered),
        flags=flags(zoo, ordered),
        runs=runs(zoo, ordered),
    )
    return page.rstrip() + "\n"


# ------------------------------------------------------------------------------------------------------------- facts


def ratio(row: Json) -> Json:
    """Cost to breach over the undefended model's, worst case: an estimate as JSON, empty when not measured."""
    found: Json = (row["conditions"].get("resistance", {}).get("ratio") or {}).get(UNIT) or {}
    return found


def standing(row: Json) -> Standing:
    """Where the whole 95% interval of the cost ratio lies: above 1, below 1, or on both sides."""
    low, high = ratio(row).get("low"), ratio(row).get("high")
    if low is None:
        return "unknown"
    if low > 1:
        return "dearer"
    return "cheaper" if high is not None and high < 1 else "not told apart"


def word(row: Json, condition: str) -> str:
    """A condition's verdict."""
    return str(row["conditions"].get(condition, {}).get("verdict", "not measured"))


def ranked(zoo: Json) -> list[str]:
    """Names by the lower end of their cost ratio, highest first; those that could not be made last."""

    def key(name: str) -> tuple[float, float]:
        found = ratio(zoo["rows"][name])
        low, value = found.get("low"), found.get("value")
        return -1.0 if low is None else low, math.inf if value is None else value

    return sorted(zoo["rows"], key=key, reverse=True)


def defences(zoo: Json) -> dict[str, Json]:
    """The rows that a defence made."""
    return {name: row for name, row in zoo["rows"].items() if "trials" in row}


# ------------------------------------------------------------------------------------------------------------- words


def summary(zoo: Json) -> list[str]:
    """What the table says, in sentences made from it."""
    made = {n: r for n, r in defences(zoo).items() if r["chosen"] >= 0}
    by: dict[str, list[str]] = {}
    for name in ranked(zoo):
        if name in made:
            by.setdefault(standing(made[name]), []).append(name)
    dearer = by.get("dearer", [])
    stable = [n for n in dearer if word(made[n], "stability") == "met"]
    held = [n for n in made if word(made[n], "resistance") == "met"]
    best = [n for n in stable if n in held]
    lines = [
        f"**Dearer to break than no defence:** {_names(dearer)} ({len(dearer)} of {len(made)}; the 95% interval of "
        "the cost ratio lies above 1).",
        f"**Dearer and stable** (no worse than undefended before any attack): {_names(stable)}.",
        f"**Not breached at all** by these attacks within {zoo['zoo']['test']['max_steps']} steps: {_names(held)}"
        + (f"; of them stable: {_names(best)}." if held else "."),
        f"**Not told apart from no defence:** {_names(by.get('not told apart', []))}.",
        f"**Cheaper to break than no defence:** {_names(by.get('cheaper', []))}.",
    ]
    if by.get("unknown"):
        lines.append(f"**Unknown:** {_names(by['unknown'])}.")
    failed = [n for n, r in defences(zoo).items() if r["chosen"] < 0]
    if failed:
        lines.append(f"**Could not be trained** with any setting: {_names(failed)}.")
    if zoo["not_run"]:
        lines.append(f"**Not run:** {_names(zoo['not_run'])}.")
    if zoo["zoo"].get("note"):
        lines.append(zoo["zoo"]["note"].strip())
    return [f"- {line}" for line in lines]


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) or "none"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _attack(member: Json) -> str:
    options = ", ".join(f"{k}={_value(v)}" for k, v in member["attack"]["options"].items())
    return f"`{member['attack']['name']}({options})`"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------------ tables


Table = list[tuple[str, ...]]  # the first row is the head


def main_table(zoo: Json, ordered: Sequence[str]) -> Table:
    """One row per model: cost ratio, breach, the four verdicts with their estimates, and the cost of a step."""
    base = zoo["rows"].get("safety-sft", {}).get("made", {}).get("per_step", {})
    head = (
        "#",
        "model",
        "cost to breach ÷ undefended",
        "earliest breach (steps)",
        *CONDITIONS,
        "tokens a step",
        "FLOPs a step",
    )
    rows = [_main_row(i, name, zoo["rows"][name], base) for i, name in enumerate(ordered, start=1)]
    return [head, *rows]


def _main_row(index: int, name: str, row: Json, base: Json) -> tuple[str, ...]:
    made = row.get("made", {}).get("per_step", {})
    step = [_times(made.get(k), base.get(k)) for k in ("tokens", "flops")]
    return (str(index), f"`{name}`", ratio_cell(row), _breach(row), *(_verdict(row, c) for c in CONDITIONS), *step)


def ratio_cell(row: Json) -> str:
    """`12 [8, 20]`, `≥ 9.5` where no attack breached, a dash where it is unknown."""
    found = ratio(row)
    low, value = found.get("low"), found.get("value")
    if low is None:
        return "–"
    return f"≥ {number(low)}" if value is None else f"{number(value)} {interval(low, found.get('high'))}"


def _breach(row: Json) -> str:
    found = (row["conditions"].get("resistance", {}).get("worst") or {}).get("steps") or {}
    if found.get("value") is None:
        return "–" if found.get("low") is None else f"> {number(found['low'])} (n {found['n']})"
    return f"{interval(found['low'], found['value']).replace('[', '(')} (n {found['n']})"


def _verdict(row: Json, condition: str) -> str:
    found = row["conditions"].get(condition, {})
    if not found:
        return "not run"
    value, about = found.get("estimate"), ""
    if condition == "stability" and value is not None:
        about = f" ({number(value)} {interval(found['low'], found['high'])}, n {found['n']})"
    return f"{found['verdict']}{about}"


def _times(value: float | None, base: float | None) -> str:
    return "–" if not value or not base else f"{number(value / base)}"


def settings_table(zoo: Json, ordered: Sequence[str]) -> Table:
    """Every setting that was tried, the chosen one first of its defence in bold."""
    head = ("defence", "setting", "steps", "tokens", "validation: breach at step", "harm", "utility")
    rows = [
        _trial_row(name, trial, i == zoo["rows"][name]["chosen"])
        for name in ordered
        for i, trial in enumerate(zoo["rows"][name].get("trials", ()))
    ]
    return [head, *rows]


def _trial_row(name: str, trial: Json, chosen: bool) -> tuple[str, ...]:
    made = trial["candidate"]
    rate = {"learning_rate": made["train"]["learning_rate"]} if trial["steps"] else {}
    options = {**made["defence"]["options"], **rate}
    setting = ", ".join(f"{k}={_value(v)}" for k, v in options.items()) or "default"
    if trial["error"]:
        return (f"`{name}`", setting, str(trial["steps"]), "–", f"failed: {_plain(trial['error'])}", "–", "–")
    breach = "none" if trial["breach"] is None else number(trial["breach"])
    utility = f"{number(trial['utility'])}{'' if trial['kept'] >= 1 else ' (too low)'}"
    tokens = number(trial["tokens"], large=True)
    cells = (setting, str(trial["steps"]), tokens, breach, number(trial["harm"]), utility)
    return (f"`{name}`", *(f"**{c}**" if chosen else c for c in cells))


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:120]


def sentences(zoo: Json, ordered: Sequence[str]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """What each verdict of each model says: by name, (condition, verdict, sentence)."""
    found = [(name, zoo["rows"][name]["conditions"]) for name in ordered]
    return [(name, _told(conditions)) for name, conditions in found if any(c in conditions for c in CONDITIONS)]


def _told(conditions: Json) -> list[tuple[str, str, str]]:
    known = [(c, conditions[c]) for c in CONDITIONS if c in conditions]
    return [(c, str(found["verdict"]), str(found.get("sentence", ""))) for c, found in known]


def flags(zoo: Json, ordered: Sequence[str]) -> list[tuple[str, str]]:
    """The models that raised each flag, by code."""
    by: dict[str, list[str]] = {}
    for name in ordered:
        for flag in zoo["rows"][name]["flags"]:
            by.setdefault(flag["code"], []).append(name)
    return [(code, _names(names)) for code, names in sorted(by.items())]


def runs(zoo: Json, ordered: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The ids behind every row."""
    return [(name, _ids(zoo["rows"][name])) for name in ordered]


def _ids(row: Json) -> list[str]:
    tried = [i for t in row.get("trials", ()) for i in (t["immunization"], *t["attacks"]) if i]
    return list(dict.fromkeys([*tried, *row["records"]]))


# -------------------------------------------------------------------------------------------------------------- plot


FRAME = Frame(820, 470, 56, 590, 24, 410)


def plot(spots: Sequence[Spot]) -> str:
    """What a breach costs against what the defence cost the model, as a standalone SVG."""
    across, up = "change of the worst probe set before any attack", "cost to breach ÷ undefended"
    drawing = str(scatter("Resistance against stability", spots, across, up, FRAME, "×"))
    style = f"<style>{asset('zoo.css').strip()}</style>"  # the class names are ours
    ground = f'<rect width="{FRAME.width:g}" height="{FRAME.height:g}" fill="#fff"/>'
    head, _, rest = drawing.partition(">")
    named = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{named}>{style}{ground}{rest}\n"


def spots(zoo: Json) -> list[Spot]:
    """The models that have both a cost ratio and a change in ability, numbered as in the table."""
    found = [_spot(i, n, zoo["rows"][n]) for i, n in enumerate(ranked(zoo), start=1)]
    return [s for s in found if s is not None]


def _spot(index: int, name: str, row: Json) -> Spot | None:
    cost, change = ratio(row), row["conditions"].get("stability", {})
    low, value, x = cost.get("low"), cost.get("value"), change.get("estimate")
    if low is None or x is None:
        return None
    y = low if value is None else value
    across = (_or(change.get("low"), x), _or(change.get("high"), x))
    kind = "defence" if "trials" in row else "control"
    return Spot(name, kind, x, y, across, (low, _or(cost.get("high"), y)), value is None, index)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
