"""What a stored result says, in a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]


def sentences(result: Json) -> Iterator[str]:
    """One line a measure for the model and each attacked one."""
    for one in result["subjects"]:
        if one["role"] in ("model", "attacked"):
            yield from _of(one)


def _of(one: Json) -> Iterator[str]:
    name, weights = one["name"], one["weights"]
    same = [str(layer["layer"]) for layer in weights["layers"] if layer["identical"]]
    moved = max(layer["relative"] for layer in weights["layers"])
    if weights["centre"] is None:
        yield f"{name}: no layer differs from the reference"
    else:
        flag = f"; bit-identical layers: {', '.join(same)}" if same else ""
        where = f"centre {weights['centre']:.2f} (0 first, 1 last), unevenness {weights['unevenness']:.2f}"
        yield f"{name}: layers moved by up to {moved:.2%}, {where}{flag}"
    said = one["lens"]["harmful"][-1]
    yield f"{name}: harmful answers {_told(said)} nats a token"
    probes = one["probes"]["answer"]
    best = max(range(len(probes)), key=lambda i: float(probes[i]["same"]["nats"]["value"]))
    own, cross = probes[best]["same"]["nats"], probes[best]["cross"]["nats"]
    yield f"{name}: best probe {_told(own)} nats, the reference's there {_told(cross)}"
    if one["depth"]["score"]:
        yield f"{name}: Unlearning Depth Score {_told(one['depth']['score'])} (1 ignorant, 0 intact)"
    if "tasks" in one:
        left = one["tasks"]["left"]
        yield f"{name}: {'no defence to be left' if left is None else f'{left:.0%} of the defence left'}"


def _told(found: Json) -> str:
    if found["value"] is None:
        return "not measured"
    bounds = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['value']:.2f}{bounds}"
