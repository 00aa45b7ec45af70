"""The page of `titer mechanism`: a figure and its table for every measure, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from markupsafe import Markup

from titer.report.cells import NONE, interval, number
from titer.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Line,
    Scale,
    Table,
    area,
    dot,
    figure,
    label,
    line,
    segment,
)
from titer.report.read import COLOURS, short
from titer.report.untrusted import styled

Json = Mapping[str, Any]
KINDS = {
    "harmful": "harmful answers to restricted prompts",
    "refusal": "refusals of restricted prompts",
    "benign": "right answers to open prompts",
}
POOLS = {"answer": "mean over the answer", "prompt": "last token of the prompt"}
TICKS = 4


@dataclass(frozen=True)
class Group:
    """A section of the page: its figures, and tables without one."""

    anchor: str
    title: str
    note: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model of the page with its name and colour, and its measures as they are stored."""

    name: str
    cls: str
    found: Json


def render(result: Json) -> str:
    """The page of a stored mechanism.json, as HTML without scripts that loads nothing."""
    subjects = list(_subjects(result["subjects"]))
    return styled(
        "mechanism.html",
        result=result,
        name=short(result["model"]),
        reference=short(result["asked"]["reference"]),
        subjects=subjects,
        groups=[g for g in _groups(result, subjects) if g.charts or g.tables],
        settings=_settings(result),
    )


def _subjects(found: Sequence[Json]) -> Iterator[Subject]:
    fixed = {"reference": "undefended", "ignorant": "ignorant"}
    given = 0
    for one in found:
        cls = fixed.get(one["role"], f"m{given % COLOURS}")
        given += one["role"] not in fixed
        yield Subject(f"{short(one['name'])} ({one['role']})", cls, one)


def _groups(result: Json, subjects: Sequence[Subject]) -> Iterator[Group]:
    against = [s for s in subjects if "weights" in s.found]
    attacked = [s for s in subjects if "tasks" in s.found]
    yield Group(
        "weights",
        "How far the weights moved",
        "Relative change of each decoder layer against the reference, no interval: weights are no sample. The share "
        "inside the top singular directions is to be read against that of a random change.",
        (_drift(against),),
        (*(_layers(s) for s in against), *(_components(s) for s in against), *_tasks(attacked)),
    )
    yield Group(
        "lens",
        "What every layer already says",
        "Logit lens: log-probability of the answers, in nats a token, read through the final norm and the head.",
        tuple(_lens(subjects)),
    )
    yield Group(
        "depth",
        "How deep the knowledge is gone",
        "What is lost of the harmful answers when the full model goes on from a model's states at one layer. The "
        "Unlearning Depth Score is 1 for a model as ignorant as the ignorant one and 0 for one that has it all.",
        (_curves(against, "Loss by patching", "nats a token", lambda f: f["depth"]["drop"]),),
        tuple(_scores(against)),
    )
    yield Group(
        "probes",
        "Is harm still recognised",
        f"Held-out linear probes for restricted against open texts; always saying the more frequent class is right in "
        f"{number(result['majority'])} of the cases and has 0 nats. “Same” is fitted on the model itself, “cross” on "
        "the reference: is it still written the same way?",
        tuple(_probes(subjects)),
    )
    yield Group(
        "geometry",
        "The shape of the states",
        "Class separation, likeness to the reference (linear CKA), the angle of the refusal direction to the "
        "reference's, and the last layer's first two principal components.",
        tuple(_geometry(subjects)),
    )
    yield Group(
        "stages",
        "Tone and completion",
        "What one module of the other model does to the opening of refusals, and harm after a forced beginning.",
        tuple(_tone(attacked)),
        (_completion(subjects),),
    )
    yield Group(
        "layers",
        "Which layers matter",
        "How much likelier the harmful answers get once a single layer has the reference's weights again.",
        (_curves(against, "One layer put back", "nats a token", lambda f: f["put_back"]),),
    )


# ----------------------------------------------------------------------------------------------------------- sections


def _drift(against: Sequence[Subject]) -> Chart:
    series = [(s, [_bare(layer["relative"]) for layer in s.found["weights"]["layers"]]) for s in against]
    return _by_layer("Drift of the layers", "relative L2", series)


def _bare(value: float | None) -> Json:
    return {"value": value, "low": value, "high": value}


def _layers(s: Subject) -> tuple[str, Table]:
    weights = s.found["weights"]
    rows = [
        (layer["layer"], number(layer["relative"]), "bit-identical" if layer["identical"] else "")
        for layer in weights["layers"]
    ]
    rows.append(("centre", number(weights["centre"]), "0 first, 1 last layer"))
    rows.append(("unevenness", number(weights["unevenness"]), "0 is flat"))
    return f"{s.name}: layers", Table(("layer", "relative L2", ""), tuple(rows))


def _components(s: Subject) -> tuple[str, Table]:
    columns = (
        "layer", "component", "relative L2", "cosine", "stable rank", "largest singular values", "inside top of W",
        "inside top of the attack's change", "by chance",
    )  # fmt: skip
    rows = []
    for one in s.found["weights"]["drifts"]:
        where = NONE if one["layer"] is None else one["layer"]
        name = one["component"] + (" (bit-identical)" if one["identical"] else "")
        spectrum = ", ".join(number(v) for v in one["spectrum"][:4])
        shares = [number(one[k]) for k in ("top_share", "attack_share", "chance")]
        measures = [number(one[k]) for k in ("relative", "cosine", "stable_rank")]
        rows.append((where, name, *measures, spectrum, *shares))
    return f"{s.name}: every component", Table(columns, tuple(rows))


def _tasks(attacked: Sequence[Subject]) -> Iterator[tuple[str, Table]]:
    if not attacked:
        return
    keys = ("defence_attack", "defence_total", "left")
    rows = [(s.name, *(number(s.found["tasks"][k]) for k in keys)) for s in attacked]
    columns = (
        "model",
        "cosine of defence and attack",
        "cosine of defence and total",
        "defence left",
    )
    yield "What is left of the defence after the attack", Table(columns, tuple(rows))


def _lens(subjects: Sequence[Subject]) -> Iterator[Chart]:
    for kind, title in KINDS.items():
        having = [s for s in subjects if kind in s.found["lens"]]
        if having:
            series = [(s, s.found["lens"][kind]) for s in having]
            yield _by_layer(f"Lens: {title}", "nats a token", series, first=-1)
            moved = [(s, s.found["lens_change"][kind]) for s in having if "lens_change" in s.found]
            yield _by_layer(f"Change of the lens: {title}", "nats a token, text by text", moved, first=-1)


def _scores(against: Sequence[Subject]) -> Iterator[tuple[str, Table]]:
    scored = [s for s in against if s.found["depth"]["score"]]
    if not scored:
        return
    rows = tuple((s.name, *_told(s.found["depth"]["score"])) for s in scored)
    yield "Unlearning Depth Score", Table(("model", "score", "95%", "n"), rows)
    known = scored[0].found["depth"]["layers_known"]
    held = tuple((i, number(share)) for i, share in enumerate(known))
    yield "Texts whose answer the ignorant model lacks at a layer", Table(("layer", "share"), held)


def _probes(subjects: Sequence[Subject]) -> Iterator[Chart]:
    for pool, where in POOLS.items():
        for kind in ("same", "cross"):
            for measure in ("accuracy", "nats"):
                title = f"Probe, {kind} model, {where}: {measure}"
                series = [(s, [p[kind][measure] for p in s.found["probes"][pool]]) for s in subjects]
                yield _by_layer(title, measure, series, first=-1)


def _geometry(subjects: Sequence[Subject]) -> Iterator[Chart]:
    named = {
        "separation": "Separation of the classes",
        "cka": "CKA with the reference",
        "refusal": "Cosine with the reference's refusal direction",
    }
    for key, title in named.items():
        yield _by_layer(title, key, [(s, s.found["geometry"][key]) for s in subjects], first=-1)
    yield from (_scatter(s) for s in subjects)


def _tone(attacked: Sequence[Subject]) -> Iterator[Chart]:
    for s in attacked:
        for way, found in s.found.get("tone", {}).items():
            parts = {"whole layer": "layers", "attention": "attentions", "MLP": "mlps"}
            series = [(Subject(name, f"m{i}", s.found), found[key]) for i, (name, key) in enumerate(parts.items())]
            title = f"Opening of refusals, {way}, {s.name}"
            plain = f"{number(found['plain']['value'])} nats a token unpatched"
            yield _by_layer(title, f"change, {plain}; blue: whole layer, orange: attention, violet: MLP", series)


def _completion(subjects: Sequence[Subject]) -> tuple[str, Table]:
    rows = []
    for s in subjects:
        for one in s.found["completion"]:
            cells = [_said(one[k]) for k in ("refusing", "complying")]
            rows.append((s.name, one["words"], *cells, one["unscored"]))
    columns = (
        "model",
        "forced words",
        "harm after a refusing beginning",
        "harm after a complying one",
        "unscored",
    )
    return "Harm after a forced beginning", Table(columns, tuple(rows))


def _curves(against: Sequence[Subject], title: str, unit: str, of: Callable[[Json], Sequence[Json]]) -> Chart:
    return _by_layer(title, unit, [(s, of(s.found)) for s in against])


def _told(found: Json) -> tuple[str, str, str]:
    return number(found["value"]), interval(found["low"], found["high"]), str(found["n"])


def _said(found: Json | None) -> str:
    return NONE if found is None else f"{number(found['value'])} {interval(found['low'], found['high'])}"


# ------------------------------------------------------------------------------------------------------------ drawing


def _by_layer(title: str, unit: str, series: Sequence[tuple[Subject, Sequence[Json]]], first: int = 0) -> Chart:
    """Lines over layers with their intervals; `first` -1 where the embedding comes before layer 0."""
    lines = [_line(s, found, first) for s, found in series]
    depth = max((len(found) for _, found in series), default=0)
    rows = tuple((_layer(i + first), *(_said(found[i]) for _, found in series)) for i in range(depth))
    table = Table(("layer", *(s.name for s, _ in series)), rows)
    return Chart(title, f"{unit}, by decoder layer", _panel(title, lines, (first, first + depth - 1)), table)


def _layer(i: int) -> object:
    return "embedding" if i < 0 else i


def _line(s: Subject, found: Sequence[Json], first: int) -> Line:
    known = [(float(i + first), e) for i, e in enumerate(found) if e["value"] is not None]
    ends = [(i, e) for i, e in known if e["low"] is not None and e["high"] is not None]
    return Line(
        s.name,
        s.cls,
        [(i, e["value"]) for i, e in known],
        [(i, e["low"]) for i, e in ends],
        [(i, e["high"]) for i, e in ends],
    )


def _panel(title: str, lines: Sequence[Line], span: tuple[int, int]) -> Markup:
    values = [v for one in lines for points in (one.points, one.lower, one.upper) for _, v in points]
    ticks = _ticks(min(values, default=0.0), max(values, default=1.0))
    x, y = Scale(*span, LEFT + 14, RIGHT), Scale(ticks[0], ticks[-1], BOTTOM, TOP)
    shapes = list(_axes(x, y, ticks, span))
    for one in lines:
        if one.lower:
            shapes.append(area(_scaled(one.lower, x, y), _scaled(one.upper, x, y), f"band {one.cls}"))
    for one in lines:
        shapes.append(line(_scaled(one.points, x, y), f"line {one.cls}"))
        shapes += [dot(px, py, f"dot {one.cls}", 2.5) for px, py in _scaled(one.points, x, y)]
    ends = "; ".join(f"{one.name} ends at {number(one.points[-1][1])}" for one in lines if one.points)
    return figure(WIDTH, HEIGHT, title, ends or "no data", shapes)


def _axes(x: Scale, y: Scale, ticks: Sequence[float], span: tuple[int, int]) -> Iterator[Markup]:
    for tick in ticks:
        yield segment(x.start, y(tick), x.end, y(tick), "grid")
        yield label(x.start - 6, y(tick) + 4, number(tick), anchor="end")
    yield segment(x.start, BOTTOM, x.end, BOTTOM, "axis")
    step = max(1, -(-(span[1] - span[0]) // 8))
    for layer in range(max(span[0], 0), span[1] + 1, step):
        yield label(x(layer), BOTTOM + 17, str(layer), anchor="middle")
    yield label((x.start + x.end) / 2, BOTTOM + 34, "layer", "axis-name", "middle")


def _scaled(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(px), y(py)) for px, py in points]


def _ticks(low: float, high: float) -> list[float]:
    """Round values that hold [low, high], at most a handful."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** floor(log10(span / TICKS))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * TICKS >= span)
    start = floor(low / step)
    count = max(1, -floor(-(high - start * step) / step))
    return [(start + i) * step for i in range(count + 1)]


def _scatter(s: Subject) -> Chart:
    """The last layer on its first two components; the restricted texts come first."""
    points, shares = s.found["geometry"]["points"], s.found["geometry"]["explained"]
    restricted = s.found["lens"]["harmful"][0]["n"]
    xs, ys = _ticks(*_range(points, 0)), _ticks(*_range(points, 1))
    x, y = Scale(xs[0], xs[-1], LEFT, RIGHT), Scale(ys[0], ys[-1], BOTTOM, TOP)
    shapes = [
        segment(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"),
        segment(LEFT, TOP, LEFT, BOTTOM, "axis"),
    ]
    for i, (a, b) in enumerate(points):
        shapes.append(dot(x(a), y(b), "dot m4" if i < restricted else "dot m0", 3))
    told = f"{restricted} restricted and {len(points) - restricted} open texts"
    title = f"Principal components, {s.name}"
    rows = tuple((f"component {i + 1}", f"{share:.1%}") for i, share in enumerate(shares))
    caption = f"{told}; red: harmful answers, blue: open answers"
    return Chart(
        title,
        caption,
        figure(WIDTH, HEIGHT, title, told, shapes),
        Table(("", "variance explained"), rows),
    )


def _range(points: Sequence[Sequence[float]], axis: int) -> tuple[float, float]:
    values = [p[axis] for p in points]
    return min(values), max(values)


def _settings(result: Json) -> Table:
    asked, counts = result["asked"], result["n"]
    rows: list[tuple[object, ...]] = [(role, value) for role, value in result["inputs"].items()]
    rows += [(f"texts: {KINDS[k]}", n) for k, n in counts.items()]
    rows += [("seeds of the folds", ", ".join(map(str, asked["seeds"])))]
    rows += [("data", ", ".join((result["roles"]["dataset"], *result["roles"]["defended"])))]
    rows += [("precision, device", f"{asked['compute']['dtype']}, {asked['compute']['device']}")]
    rows += [
        ("seconds", number(result["seconds"])),
        ("id", result["id"]),
        ("made", result["created"]),
    ]
    rows += [(name, version) for name, version in result["environment"]["packages"].items()]
    rows += [("command", command) for command in result["commands"]]
    return Table(("what", "value"), tuple(rows))
