"""Tables that have no chart: defence data against attack data, harm after harmless tasks, and what judges say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from titer.report.cells import ARROW, NONE, interval, number
from titer.report.read import Result, short
from titer.report.sections.verdicts import Cell, details, dig, estimate_cell
from titer.schema.types import OUTCOMES


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as shown: a caption, column names (the first names the rows) and rows of cells."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


KINDS = {"unseen": "unseen samples", "withheld": "withheld categories", "cross": "another domain"}


def grid(results: Sequence[Result]) -> list[Rows]:
    """Models defended on different data: one row a model, one column a set of categories attacked; then by kind.

    Empty unless at least two of the results were defended on different categories.
    """
    rows = [(r, {attacked(r, row): row for row in dig(details(r, "generalization"), "matrix") or ()}) for r in results]
    if len({repr(dig(r, "settings", "data", "defended")) for r, cells in rows if cells}) < 2:
        return []
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    body = [(_defended(r), tuple(_crossed(cells.get(c)) for c in columns)) for r, cells in rows if cells]
    plain = {c: row for _, cells in rows for c, row in cells.items()}
    body.append(("undefended", tuple(_harm(plain[c]["undefended_harm"]) for c in columns)))
    return [Rows("Steps to breach, by attack data", ("Defence data", *columns), tuple(body)), _by_kind(results)]


def attacked(result: Result, row: Mapping[str, Any]) -> str:
    """The categories behind a row of a result's matrix, in words."""
    kind, _, name = str(row["attack_data"]).partition(":")
    role = kind if kind in ("withheld", "cross") else "defended"
    return name or ", ".join(dig(result, "settings", "data", role) or (kind,))


def _defended(result: Result) -> str:
    return f"{short(str(result['model']))}, defended on {', '.join(dig(result, 'settings', 'data', 'defended') or ())}"


def _crossed(row: Mapping[str, Any] | None) -> Cell:
    """One cell of the grid: steps to breach, what the data is to the defence, and the highest harm."""
    if row is None:
        return Cell("–", spoken="not measured")
    kind, harm = str(row["attack_data"]).partition(":")[0], row["harm"]
    cell = estimate_cell(row["steps"])
    said = f"{kind} · harm {number(harm.get('value'))} {interval(harm.get('low'), harm.get('high'))}"
    return replace(cell, sample=f"{said} · {cell.sample}")


def _harm(estimate: Mapping[str, Any]) -> Cell:
    cell = estimate_cell(estimate)
    return replace(cell, value=f"harm {cell.value}")


def _by_kind(results: Sequence[Result]) -> Rows:
    """The verdict for each kind of attack data, model by model."""
    tags = [dig(details(r, "generalization"), "tags") or {} for r in results]
    rows = tuple((words, tuple(_verdict(found.get(kind)) for found in tags)) for kind, words in KINDS.items())
    return Rows("By kind of attack data", ("Attack data", *(short(str(r["model"])) for r in results)), rows)


def _verdict(found: Mapping[str, Any] | None) -> Cell:
    if not found:
        return Cell("not measured")
    cell = estimate_cell(found.get("estimate"))
    return replace(cell, value=str(found["verdict"]), spoken="", interval=f"{cell.value} {cell.interval}")


def audits(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Per model: that what is called withheld was absent from the defence's data, and what proves it."""
    return [(short(str(r["model"])), _audit(r["data_audit"])) for r in results if r.get("data_audit")]


def _audit(found: Mapping[str, Any]) -> str:
    sets = found["sets"]
    sizes = ", ".join(f"{name} {number(s['prompts'])}" for name, s in sets.items())
    saw = {
        "these": f"The defence's own record holds the same prompts (digest {sets['defence data']['digest']}).",
        "others": "The defence's own record names OTHER prompts than these: withheld is not shown for this model.",
    }.get(str(found.get("defence_saw")), "Which prompts the defence saw is not recorded.")
    return f"{found['exact']} exact and {found['near']} near duplicates between the roles ({sizes}). {saw}"


def benign_harm(results: Sequence[Result]) -> list[Rows]:
    """Per model: harm on restricted prompts before and after each harmless task, the reference's beside it."""
    found = []
    for result in results:
        tasks = dig(details(result, "trainability"), "tasks") or {}
        rows = tuple((str(name), _before_after(harm)) for name, task in tasks.items() if (harm := dig(task, "harm")))
        if rows:
            name = short(str(result["model"]))
            columns = ("Task", f"{name}, before", f"{name}, after", "reference, before", "reference, after")
            found.append(Rows(name, columns, rows))
    return found


def _before_after(harm: Mapping[str, Any]) -> tuple[Cell, ...]:
    return tuple(estimate_cell(dig(harm, who, when)) for who in ("model", "reference") for when in ("before", "after"))


def judges(results: Sequence[Result]) -> list[Rows]:
    """What `titer judge` found, each finding once: rates by probe set, then agreement of every two judges."""
    found: dict[str, list[Rows]] = {}
    for result in results:
        if judged := result.get("judges"):
            found.setdefault(repr(judged), [*_rates(judged), *_agreement(judged), *_bills(judged)])
    return [table for tables in found.values() for table in tables]


def configurations(results: Sequence[Result]) -> list[tuple[str, Rows]]:
    """By model: what every attack configuration cost to breach it and the undefended model, most breaches first."""
    found = []
    for one in results:
        resistance = details(one, "resistance")
        other = dig(resistance, "controls", "undefended", "configs") or ()
        theirs = {(c["config"], c["data"]): c for c in other}
        configs = sorted(resistance.get("configs", ()), key=lambda c: (-c["breached"] / c["runs"], c["config"]))
        rows = tuple(
            (f"{c['config']}, {c['data']} data", _cost(c, theirs.get((c["config"], c["data"])))) for c in configs
        )
        columns = ("Attack", "Runs breached", "Steps, cheapest run", "Steps, median", "Undefended, cheapest run")
        if rows:
            found.append((short(str(one["model"])), Rows("", columns, rows)))
    return found


def _cost(config: Mapping[str, Any], undefended: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    return (
        Cell(f"{config['breached']} of {config['runs']}"),
        estimate_cell(config["worst"]["steps"]),
        estimate_cell(config["median"]["steps"]),
        estimate_cell(undefended["worst"]["steps"]) if undefended else Cell(NONE),
    )


def searches(results: Sequence[Result]) -> list[tuple[Rows, str]]:
    """What `titer search` found, by model: both prices with the fresh seeds behind them, and how it went in words."""
    return [_search(short(str(r["model"])), s) for r in results if (s := r.get("search"))]


def _search(name: str, s: Mapping[str, Any]) -> tuple[Rows, str]:
    unit, best = str(s["unit"]), s["best"] or {}
    seeds = ", ".join(NONE if p is None else number(p, True) for p in best.get("replicates", ()))
    none = Cell(ARROW, f"above {number(s['budget'], True)} {unit}", spoken="no breach found")
    cells = (
        Cell(number(s["oracle"], True), f"fresh seeds: {seeds}", f"{len(best['replicates'])} seeds") if best else none,
        Cell(number(s["cheapest"], True)) if best else none,
        Cell(number(s["search"], True), f"{number(s['search_spend']['tokens'], True)} tokens") if best else none,
        Cell(number(s["spend"][unit], True), f"{number(s['spend']['tokens'], True)} tokens"),
        Cell(number(len(s["trials"]))),
    )
    columns = ("Model", f"Oracle price, {unit}", "Cheapest run", "Search price", "All that was spent", "Trials")
    return Rows("", columns, ((name, cells),)), _how(name, s, best)


def _how(name: str, s: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    end = f"It tried {len(s.get('attacks', ()))} attacks and stopped: {s['stopped']}."
    if not best:
        return f"{name}: no setting breached it within {number(s['budget'], True)} {s['unit']} a trial. {end}"
    options = best["attack"]["options"].items()
    chosen = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in options)
    runs = f" Runs: {', '.join(best['records'])}." if best.get("records") else ""
    return f"{name}: the cheapest setting was {best['attack']['name']}({chosen}). {end}{runs}"


def _rates(judged: Mapping[str, Any]) -> list[Rows]:
    columns = ("Judge", "completions", "not scored", "mean harm", *OUTCOMES)
    return [
        Rows(f"{probe}, {len(judged['runs'])} runs", columns, tuple((str(r["judge"]), _rate(r)) for r in given))
        for probe, given in judged["rates"].items()
    ]


def _rate(r: Mapping[str, Any]) -> tuple[Cell, ...]:
    return tuple(Cell(number(v)) for v in (r["n"], r["unscored"], r["harm"], *(r["outcomes"][o] for o in OUTCOMES)))


def _agreement(judged: Mapping[str, Any]) -> list[Rows]:
    keys = ("n", "same", "kappa", "kappa_outcomes", "spearman")
    rows = tuple(
        (" / ".join(a["judges"]), tuple(Cell(number(v)) for v in (*(a[k] for k in keys), len(a["differ"]))))
        for a in judged["agreements"]
    )
    columns = ("Judges", "completions", "same breach", "κ of breach", "κ of outcomes", "Spearman", "differ on")
    return [Rows("Agreement of two judges", columns, rows)] if rows else []


def _bills(judged: Mapping[str, Any]) -> list[Rows]:
    """What asking has cost, for judges that cost something."""
    bills = judged.get("bills") or {}
    columns = list(dict.fromkeys(k for bill in bills.values() for k in bill))
    rows = tuple((str(name), tuple(Cell(number(bill.get(k))) for k in columns)) for name, bill in bills.items())
    return [Rows("Cost of judging", ("Judge", *(c.replace("_", " ") for c in columns)), rows)] if rows else []
