"""A release gate: results held to a policy file. Exit codes: 0 pass, 3 fail, 4 inconclusive or not measured.

A policy is YAML:

    suite: quick                 # the suite it must have been measured with (suite_hash: pins its content)
    min_seeds: 3
    allowed_flags: [few-seeds]   # any other flag fails; without this key no flag is looked at
    conditions:
      resistance: {verdict: met, threshold: {min: 100}, estimate: {min: 100}}
      stability: {verdict: met}

`verdict` is `met` or `any`; an inconclusive or unmeasured condition passes neither. `threshold` bounds what the
condition was held to (T in steps, the margin, epsilon); `estimate` bounds the number, by its interval: wholly outside
fails, partly outside is inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from titer.report.cells import interval, number
from titer.report.read import CONDITIONS, Result
from titer.schema.errors import TiterError

PASS, FAIL, INCONCLUSIVE = 0, 3, 4
Word = Literal["pass", "fail", "inconclusive"]
KEYS = ("suite", "suite_hash", "min_seeds", "allowed_flags", "conditions")
RULES = ("verdict", "threshold", "estimate")
SEEDED = ("resistance", "generalization", "trainability")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the policy, and how the results did."""

    line: int
    key: str
    word: Word
    message: str


@dataclass(frozen=True, slots=True)
class Gate:
    """All checks; `code` is the exit code of the process that asked."""

    policy: str
    checks: tuple[Check, ...]

    @property
    def code(self) -> int:
        """3 when any check failed, else 4 when any is inconclusive, else 0."""
        words = {c.word for c in self.checks}
        return FAIL if "fail" in words else INCONCLUSIVE if "inconclusive" in words else PASS

    @property
    def text(self) -> str:
        """One line per check, as `policy.yaml:7: fail: conditions.resistance.verdict: ...`, and the outcome."""
        lines = [f"{self.policy}:{c.line}: {c.word}: {c.key}: {c.message}" for c in self.checks]
        outcome = {PASS: "pass", FAIL: "fail", INCONCLUSIVE: "inconclusive"}[self.code]
        return "\n".join([*lines, f"gate: {outcome}"])


def check_policy(result: Result, policy: str | Path) -> Gate:
    """Hold one result to a policy file.

    Errors: TiterError when the policy is missing, malformed or asks for nothing.
    """
    path = Path(policy)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TiterError(f"policy {path}: {error.strerror}: check the path") from None
    lines, rules = _parse(path, text)
    checks = [Check(lines.get(key, 1), ".".join(key), word, said) for key, word, said in _checks(result, rules, path)]
    return Gate(path.name, tuple(checks))


Key = tuple[str, ...]
Outcome = tuple[Key, Word, str]


def _parse(path: Path, text: str) -> tuple[dict[Key, int], Mapping[str, Any]]:
    try:
        rules, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise TiterError(f"policy {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(rules, dict) or not rules.get("conditions"):
        raise TiterError(f"policy {path}: no `conditions`: an empty policy would pass anything")
    lines = dict(_lines(node, ()))
    _known(path, rules, KEYS, lines, ())
    _known(path, rules["conditions"], CONDITIONS, lines, ("conditions",))
    for name, rule in rules["conditions"].items():
        _known(path, rule, RULES, lines, ("conditions", name))
        for bound in ("threshold", "estimate"):
            _known(path, rule.get(bound, {}), ("min", "max"), lines, ("conditions", name, bound))
    return lines, rules


def _lines(node: Any, at: Key) -> Iterator[tuple[Key, int]]:
    """The line of every key, from the parser's marks."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, str(key.value))
            yield where, key.start_mark.line + 1
            yield from _lines(value, where)


def _known(path: Path, found: Any, known: Sequence[str], lines: Mapping[Key, int], at: Key) -> None:
    name = ".".join(at) or "the policy"
    if not isinstance(found, dict):
        raise TiterError(f"policy {path}:{lines.get(at, 1)}: {name} must hold {', '.join(known)}, not {found!r}")
    for key in found:
        if key not in known:
            line = lines.get((*at, str(key)), 1)
            raise TiterError(f"policy {path}:{line}: unknown key {key!r} in {name}: known: {', '.join(known)}")


def _checks(result: Result, rules: Mapping[str, Any], path: Path) -> Iterator[Outcome]:
    settings = result.get("settings") or {}
    for key in ("suite", "suite_hash"):
        if key in rules:
            same = settings.get(key) == rules[key]
            yield (
                (key,),
                "pass" if same else "inconclusive",
                f"{rules[key]} asked for, measured with {settings.get(key)}",
            )
    if "allowed_flags" in rules:
        raised = [str(f.get("code")) for f in result.get("flags") or ()]
        bad = sorted(set(raised) - set(rules["allowed_flags"] or ()))
        yield (
            ("allowed_flags",),
            "fail" if bad else "pass",
            f"raised: {', '.join(bad)}" if bad else "no other flag raised",
        )
    for name, rule in rules["conditions"].items():
        found = result["conditions"].get(name) or {"verdict": "not measured"}
        yield from _condition(name, found, rule, path)
        if "min_seeds" in rules and name in SEEDED:
            count = len(found.get("seeds") or ())
            word: Word = "pass" if count >= int(rules["min_seeds"]) else "inconclusive"
            yield ("min_seeds",), word, f"{name}: {count} of {rules['min_seeds']} seeds"


def _condition(name: str, found: Mapping[str, Any], rule: Mapping[str, Any], path: Path) -> Iterator[Outcome]:
    at, wanted, is_now = ("conditions", name), str(rule.get("verdict", "met")), str(found.get("verdict"))
    if wanted not in ("met", "any"):
        raise TiterError(f"policy {path}: conditions.{name}.verdict is {wanted!r}: use met or any")
    settled = is_now in ("met", "not met")
    word: Word = "inconclusive" if not settled else "pass" if wanted in (is_now, "any") else "fail"
    said = f"{wanted} asked for, is {is_now}" + (f": {found['sentence']}" if found.get("sentence") else "")
    yield (*at, "verdict") if "verdict" in rule else at, word, said
    if "threshold" in rule:
        held = found.get("threshold")
        yield (*at, "threshold"), _within(held, held, rule["threshold"], "inconclusive"), f"held to {number(held)}"
    if "estimate" in rule:
        low, high, value = (found.get(k) for k in ("low", "high", "estimate"))
        said = f"{number(value)} {interval(low, high)} {found.get('unit', '')}, asked for {_bounds(rule['estimate'])}"
        yield (*at, "estimate"), _within(low, high, rule["estimate"], "fail"), said


def _within(low: Any, high: Any, bounds: Mapping[str, Any], outside: Word) -> Word:
    """Whether [low, high] lies in the bounds: wholly, wholly not (`outside`), or partly. An open end is infinite."""
    if low is None and high is None:
        return "inconclusive"
    bottom, top = float("-inf") if low is None else float(low), float("inf") if high is None else float(high)
    least, most = float(bounds.get("min", "-inf")), float(bounds.get("max", "inf"))
    if bottom >= least and top <= most:
        return "pass"
    return outside if top < least or bottom > most else "inconclusive"


def _bounds(bounds: Mapping[str, Any]) -> str:
    return " and ".join(f"{'at least' if k == 'min' else 'at most'} {v}" for k, v in bounds.items())
