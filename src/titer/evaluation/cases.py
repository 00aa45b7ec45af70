"""From models and a question to cases: every default resolved, the data proven disjoint, nothing run yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from titer.conditions import CONDITIONS, Condition
from titer.conditions.parts.signs import Facts
from titer.conditions.trainability import Trainability
from titer.data.load import load
from titer.data.roles import check, in_blocks
from titer.data.select import select
from titer.data.splits import categories
from titer.evaluation.suites import suite_of
from titer.models.load import bare, check_available, resolve
from titer.models.remote import Server
from titer.runs.layers import identical_layers, trained_share
from titer.runs.layout import canonical
from titer.runs.provenance import parent, roles_of
from titer.runs.tools import differences
from titer.schema.errors import TiterError, unknown
from titer.schema.evaluation import Case, Difference, Evaluation, Task, check_served
from titer.schema.specs import Cell, Selection
from titer.schema.suite import Suite
from titer.schema.types import Role


def cases(models: Sequence[str], asked: Evaluation, suite: Suite | None = None) -> list[Case]:
    """A case per model; `suite` stands for the one that `asked` names.

    Models that say what data they were defended on are each held to it; where they differ, attacks for generalization
    train on one block of categories at a time.
    """
    check_served(asked)
    for url in filter(None, (asked.generate_url, asked.reference_url)):
        Server.at(url)
    if asked.generate_url and len(models) > 1:
        raise TiterError("generate_url: a server holds one of the models: evaluate them one by one")
    if twice := next((m for i, m in enumerate(models) if m in models[:i]), ""):
        raise TiterError(f"model {twice}: given twice: name each model once")
    conditions_of(asked)
    made = [_case(model, asked, suite or suite_of(asked)) for model in models]
    blocks = in_blocks([case.roles for case in made])
    return [replace(case, roles=roles) for case, roles in zip(made, blocks, strict=True)]


def _case(model: str, asked: Evaluation, suite: Suite) -> Case:
    roles = roles_of(model, asked.data)
    check(roles)
    reference = asked.reference or reference_of(model)
    check_available(resolve(bare(reference)))
    controls = default_controls(reference) if asked.controls is None else _controls(asked.controls)
    compute = canonical(asked.compute)
    return Case(model, reference, roles, suite, replace(asked, compute=compute), controls)


def _controls(given: Mapping[str, str]) -> dict[Role, str]:
    """Controls by role; `TiterError` for what is none."""
    known: dict[str, Role] = {"ignorant": "ignorant", "random": "random"}
    if strange := [name for name in given if name not in known]:
        raise unknown("control", strange[0], known)
    return {known[name]: model for name, model in given.items()}


def reference_of(model: str) -> str:
    """What a model was made from; `TiterError` where titer did not make it."""
    if known := parent(model):
        return known
    if model.startswith("organism/"):
        return "organism/aligned"
    raise TiterError(f"model {model}: titer did not make it, so its reference is unknown: pass --reference")


def default_controls(reference: str) -> dict[Role, str]:
    """The ideal where there is one (the embedded world's `ignorant`), and the reference's shape with fresh weights."""
    if reference.startswith("organism/"):
        return {"ignorant": "organism/ignorant", "random": "organism/random"}
    return {"random": f"random:{reference}"}


# -------------------------------------------------------------------------------------------------------- conditions


def conditions_of(asked: Evaluation) -> list[Condition]:
    """The conditions asked for, configured; `TiterError` for none, for one twice, and for a wrong name or option."""
    found = [_with_tasks(CONDITIONS.read(text), asked) for text in asked.conditions]
    names = [c.name for c in found]
    if not found:
        raise TiterError(f"conditions: none chosen: pass at least one of {', '.join(CONDITIONS)}")
    if len(set(names)) < len(names):
        raise TiterError(f"conditions: {max(names, key=names.count)} is given twice: name each once")
    return found


def _with_tasks(condition: Condition, asked: Evaluation) -> Condition:
    """Trainability with its tasks looked up, if it was given none."""
    if not isinstance(condition, Trainability) or condition.tasks:
        return condition
    named = condition.tasks_from
    return replace(condition, tasks=tasks_of(task_set(asked.data.dataset) if named is None else named))


def task_set(dataset: str) -> str:
    """The harmless tasks that go with a data set; none but for the embedded world."""
    return "organism/tasks" if dataset == "organism" else ""


def tasks_of(dataset: str) -> tuple[Task, ...]:
    """One trainability task per category of a data set of open examples; none for ""."""
    if not dataset:
        return ()
    found = categories(load(dataset).examples, restricted=False)
    return tuple(Task(name, dataset) for names in found.values() for name in names)


def cells_of(case: Case, asked: Sequence[Condition]) -> list[Cell]:
    """Every run that the conditions need for a case that was `examined`."""
    return [cell for condition in asked for cell in condition.asks(case)]


# --------------------------------------------------------------------------------------------- what is looked at first

FEWEST_FRESH, MOST_FRESH = 12, 24


def examined(case: Case) -> Case:
    """The case with what its files say, differences from the reference's and doubts, and its control prompts."""
    attacker = case.attacker or case.asked.attacker_tokenizer
    found = differences(case.model, attacker or case.reference)
    fresh = {tag: drawn for tag in (case.roles.label("unseen"), *case.roles.wide()) if (drawn := _fresh(case, tag))}
    return replace(case, attacker=attacker, differences=found, doubts=tuple(_doubts(case, found)), fresh=fresh)


def _doubts(case: Case, found: Sequence[Difference]) -> Iterator[str]:
    """Reasons against `met` that no attack of the suite answers."""
    for part, why in (("vocabulary", "{}"), ("config", "{}: not attacked with the reference's")):
        told = [d.text for d in found if d.part == part and (part == "vocabulary" or not d.tool)]
        if told:
            yield why.format("; ".join(told))
    share = trained_share(bare(case.model))
    if share is not None and share < 1:
        yield f"{1 - share:.0%} of the weights take no gradient as they are stored"


def _fresh(case: Case, tag: str) -> Selection | None:
    """Where the control prompts of a tag come from; None where too few are left.

    From the attack split beside the attacker's sample. Where that takes all of it, from the defence's split: withheld
    and cross categories the defence never saw, and prompts it did see can only lower the control.
    """
    whole, taken = case.roles.attack(tag, None, 0), case.suite.n_train
    if taken is not None and _size(whole) - taken >= FEWEST_FRESH:
        return replace(whole, n=MOST_FRESH, skip=taken)
    other = replace(whole, split="defence", n=MOST_FRESH)
    return other if _size(other) >= FEWEST_FRESH else None


def _size(selection: Selection) -> int:
    try:
        return len(select(selection))
    except TiterError:
        return 0


def facts_of(case: Case) -> Facts:
    """What the model's folder says, for the flags."""
    return Facts(
        tools=tuple(d.text for d in case.differences),
        identical=identical_layers(case.model, case.reference),
        trains=trained_share(bare(case.model)),
    )
