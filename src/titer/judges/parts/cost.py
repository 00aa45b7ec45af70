"""What judging has cost: requests, tokens and dollars of the endpoints behind a judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from titer.judges import make_judge
from titer.judges.base import Judge
from titer.judges.endpoint import EndpointJudge
from titer.judges.panel import Panel
from titer.judges.parts.coherence import Coherent

Bill = Mapping[str, float]


def bill(judge: Judge) -> dict[str, float]:
    """What a judge, or the members of a panel, have cost in this process; empty for one that costs nothing."""
    if isinstance(judge, Coherent):
        return bill(judge.judge)
    if isinstance(judge, EndpointJudge):
        return judge.bill()
    total: Counter[str] = Counter()
    for member in judge.judges if isinstance(judge, Panel) else ():
        total.update(bill(member))
    return dict(total)


def bills(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The bills so far of the judges that cost something, by name."""
    return {name: found for name in names if (found := bill(make_judge(name)))}


def since(before: Mapping[str, Bill], now: Mapping[str, Bill]) -> dict[str, dict[str, float]]:
    """What was added to each bill; a judge that was asked nothing new is left out."""
    added = {name: {k: v - before.get(name, {}).get(k, 0) for k, v in found.items()} for name, found in now.items()}
    return {name: found for name, found in added.items() if any(found.values())}
