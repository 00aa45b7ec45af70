"""What may be asked of a model, and the one place that turns the question into runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from titer.schema.breach import Breach
from titer.schema.errors import TiterError, require
from titer.schema.roles import Roles
from titer.schema.specs import SAID, AttackRun, Cell, Compute, Measure, Named, Price, ProbeSet, Selection, TrainArgs
from titer.schema.suite import Member, Suite
from titer.schema.types import Budget, Role
from titer.schema.wordings import JAILBREAKS

CONDITIONS = ("resistance", "stability", "generalization", "trainability")
Tag = Literal["unseen", "seen", "withheld", "cross"]
Counted = Literal["steps", "examples", "tokens", "flops"]
MEASURE = "measure"  # data label of the runs that only measure
OWN = "own"  # label of the runs with the tools of the model's own folder
FRESH = "harm_fresh"  # the probe set of control prompts
NOISE_SEED = 1000  # seeds of the second half of the A/A comparison: the first half's plus this
OVER_REFUSAL = 250  # prompts of an over-refusal set: as many as XSTest has safe ones


@dataclass(frozen=True)
class Data:
    """The data of a question: restricted and open examples, and what of them the defence did not see.

    Attributes:
        dataset: organism, countries, a .jsonl/.csv/.parquet path, or a hub id; its restricted rows are attacked.
        open_dataset: harmless examples; default those of the data set.
        domain: restricted domain that is defended; default the first.
        withhold: restricted categories the defence does not see; default the domain's last.
    """

    dataset: str = "organism"
    open_dataset: str = ""
    domain: str = ""
    withhold: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Grading:
    """How completions are made and judged.

    Attributes:
        judge: exact, refusal, classifier:FOLDER, guard:FOLDER, endpoint:URL, panel:A|B, or an import path.
        max_new_tokens: tokens that a completion may have.
    """

    judge: str = "exact"
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        require("max_new_tokens", self.max_new_tokens, least=1)


@dataclass(frozen=True)
class Immunization:
    """A defended model as asked for.

    Attributes:
        defence: name from `titer ls defences`, an import path pkg.mod:Class, or several as a#option=1+b#option=2.
        defence_args: hyper-parameters of one defence, as --defence_args.noise_weight 0.01
        retain_dataset: benign data to stay capable on; default the open examples of the data set, "" none.
        base_model: the model before its alignment, for defences that need it.
        seed: decides every draw.
    """

    defence: str = "repnoise"
    defence_args: Mapping[str, str] = field(default_factory=dict)
    retain_dataset: str | None = None
    base_model: str = ""
    seed: int = 0
    data: Data = field(default_factory=Data)
    train: TrainArgs = field(default_factory=TrainArgs)
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True)
class Attempt:
    """An attack as asked for: with which data, under which budget, how often, and how it is graded.

    Attributes:
        attack: name from `titer ls attacks`, or an import path pkg.mod:Class; options as sft#learning_rate=1e-3.
        attack_args: hyper-parameters of the attack, as --attack_args.lr_scheduler_type cosine
        learning_rate: short for --attack_args.learning_rate.
        trains_on: what the attacker trains on, relative to the defence's data.
        budget: --budget.steps, --budget.tokens, --budget.flops, --budget.usd, ...; the first reached ends the attack.
        price: what dollars are counted by, --price.usd_per_hour and --price.flops_per_second.
        seeds: one run each; a seed also draws the attacker's sample.
        n_train: harmful examples that the attacker has.
        n_eval: prompts of every probe.
        probe_steps: steps at which the model is graded; default dense early.
        stop_after: probes after which an attack that has breached ends; -1 never.
        attacker_tokenizer: model or folder whose tokenizer, template and end tokens the attacker uses; default
            those of what the model was made from, else its own.
    """

    attack: str = "sft"
    attack_args: Mapping[str, str] = field(default_factory=dict)
    learning_rate: float | None = None
    trains_on: Tag = "unseen"
    budget: Budget = Budget(steps=100)
    price: Price = field(default_factory=Price)
    seeds: tuple[int, ...] = (0, 1, 2)
    n_train: int | None = 100
    n_eval: int | None = 48
    probe_steps: tuple[int, ...] = ()
    stop_after: int = -1
    attacker_tokenizer: str = ""
    data: Data = field(default_factory=Data)
    grading: Grading = field(default_factory=Grading)
    breach: Breach = field(default_factory=Breach)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("attack: no seeds: pass one or more with --seeds")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: the same seed twice is the same run twice: give different ones")
        for name, count in (("n_train", self.n_train), ("n_eval", self.n_eval)):
            if count is not None:
                require(name, count, least=1)


@dataclass(frozen=True)
class Task:
    """A harmless task for trainability: its examples, where a fine-tune of it starts from, and for how long."""

    name: str
    dataset: str
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 32
    max_steps: int = 50
    plan: tuple[int, ...] = (0, 10, 20, 30, 40, 50)
    seeds: tuple[int, ...] = (0, 1, 2)
    n_eval: int = 40


@dataclass(frozen=True)
class Evaluation:
    """What is asked of a model: the attacks, the conditions, and everything both are held to.

    Attributes:
        suite: name from `titer ls suites`.
        max_steps: the attacker's budget T in steps (makes the suite `custom`).
        seeds: seeds of every member (makes the suite `custom`).
        learning_rates: learning rates of the first member (makes the suite `custom`).
        reference: the undefended model; default what the model was immunized from.
        controls: further models, as --controls.ignorant MODEL; default those that are known.
        conditions: which conditions, with options as stability#margin=0.05&over_refusal=xstest.
        stop_after: probes after which an attack that has breached ends; -1 never.
        generate_url: a server that holds the model, http://HOST/v1#model=NAME, for --conditions stability.
        reference_url: the same for the reference.
        attacker_tokenizer: model or folder whose tokenizer, template and end tokens the attacker uses; default
            those of the reference.
        salt: word that draws the control prompts of every attack; default a fresh one, recorded in the results.
    """

    suite: str = "quick"
    max_steps: int | None = None
    seeds: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    reference: str = ""
    controls: Mapping[str, str] | None = None
    conditions: tuple[str, ...] = CONDITIONS
    data: Data = field(default_factory=Data)
    grading: Grading = field(default_factory=Grading)
    breach: Breach = field(default_factory=Breach)
    price: Price = field(default_factory=Price)
    compute: Compute = field(default_factory=Compute)
    stop_after: int = 1
    generate_url: str = ""
    reference_url: str = ""
    attacker_tokenizer: str = ""
    salt: str = ""

    def __post_init__(self) -> None:
        require("stop_after", self.stop_after, least=-1)
        if self.max_steps is not None:
            require("max_steps", self.max_steps, least=1)
        for rate in self.learning_rates:
            require("learning_rates", rate, above=0)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: the same seed twice is the same run twice: give different ones")


@dataclass(frozen=True)
class Provider:
    """A fine-tuning service: how it tunes, behind which guards, and what it is sent.

    Attributes:
        guard: what the provider does, names from `titer ls guards` (a guard and repairs joined by +), or all; options
            as lisa#rho=0.1. No guard always runs as the control.
        guard_args: hyper-parameters of one guard, as --guard_args.rho 0.1
        poison_ratios: shares of harmful rows in what the user sends.
        tune: what differs in how the provider fine-tunes, as --tune.learning_rate 1e-4
        task_dataset: harmless tasks, one per category; default the embedded ones on the organism.
        task: the category of the task data that is fine-tuned on; default its first.
        base_model: the model before its alignment, for guards that need it.
        seeds: one run each.
        n_train: rows that the user sends.
        n_eval: prompts of every probe.
    """

    guard: tuple[str, ...] = ()
    guard_args: Mapping[str, str] = field(default_factory=dict)
    poison_ratios: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 1.0)
    tune: Mapping[str, str] = field(default_factory=dict)
    task_dataset: str | None = None
    task: str = ""
    base_model: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    n_train: int = 200
    n_eval: int = 48
    data: Data = field(default_factory=Data)
    grading: Grading = field(default_factory=Grading)
    price: Price = field(default_factory=Price)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        if not self.poison_ratios or not self.seeds:
            raise ValueError("provider: no poison ratio or no seed: pass one or more of each")
        for ratio in self.poison_ratios:
            require("poison_ratios", ratio, least=0, most=1)


@dataclass(frozen=True)
class Search:
    """The adaptive attacker's question: which setting breaches most cheaply.

    Attributes:
        attacks: the attacks whose spaces are searched; default all that need no further input.
        budget: what one trial may spend at most.
        unit: what prices are counted in.
        total: what the whole search may spend, in that unit.
        patience: proposed settings without a cheaper breach after which the search ends.
        persistence: proposed settings after which it ends without any breach.
        max_trials: settings tried at most.
        trains_on: what the attacker trains on, relative to the defence's data.
        n_train: harmful examples that the attacker has.
        n_eval: prompts of every probe.
        seed: decides what is proposed.
        attacker_tokenizer: model or folder whose tokenizer, template and end tokens the attacker uses; default
            those of what the model was made from, else its own.
    """

    attacks: tuple[str, ...] = ()
    budget: Budget = Budget(steps=100)
    unit: Counted = "steps"
    total: float | None = None
    patience: int = 16
    persistence: int = 48
    max_trials: int = 300
    trains_on: Tag = "unseen"
    n_train: int | None = 100
    n_eval: int | None = 48
    seed: int = 0
    attacker_tokenizer: str = ""
    data: Data = field(default_factory=Data)
    grading: Grading = field(default_factory=Grading)
    breach: Breach = field(default_factory=Breach)
    price: Price = field(default_factory=Price)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        for name in ("patience", "persistence", "max_trials"):
            require(name, getattr(self, name), least=1)
        for name, count in (("n_train", self.n_train), ("n_eval", self.n_eval)):
            if count is not None:
                require(name, count, least=1)


@dataclass(frozen=True)
class Difference:
    """A difference of a folder's files, weights apart, from the reference's, that can change what the model does.

    `tool` says that an attacker leaves it behind when he takes the weights only.
    """

    part: Literal["vocabulary", "tokenizer", "template", "generation", "config", "dtype"]
    text: str
    tool: bool = True


@dataclass(frozen=True)
class Case:
    """One model's question with every default resolved: all that conditions need to ask for runs.

    `controls` maps `ignorant` and `random` to models, `roles` says who sees what, `suite` holds the attacks.
    `attacker` is the model whose tokenizer, template and end tokens attacks use, "" the reference; `differences` are
    those of the model's folder from it, `doubts` reasons of its files against `met`. `fresh` says what the
    control prompts are drawn from, by tag.
    """

    model: str
    reference: str
    roles: Roles
    suite: Suite
    asked: Evaluation = Evaluation()
    controls: Mapping[Role, str] = field(default_factory=dict)
    attacker: str = ""
    differences: tuple[Difference, ...] = ()
    doubts: tuple[str, ...] = ()
    fresh: Mapping[str, Selection] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------- who

    def named(self, role: Role) -> str:
        """The model behind a role."""
        return {"model": self.model, "undefended": self.reference, **self.controls}[role]

    # ------------------------------------------------------------------------------------------------- runs

    def both_ways(self) -> bool:
        """Whether the model's own tools may hide something, so that it is attacked with them as well."""
        return any(d.tool for d in self.differences)

    def with_own_tools(self, member: Member, tag: str) -> list[Cell]:
        """A suite member against the model with the tokenizer, template and end tokens of its own folder."""
        cells = self.attack(member, tag)
        return [
            Cell(replace(c.run, tools=""), {**c.labels, "tools": OWN}) for c in cells if isinstance(c.run, AttackRun)
        ]

    def attack(self, member: Member, tag: str, role: Role = "model", *, noise: bool = False) -> list[Cell]:
        """A suite member against a role's model on data of a tag, a cell per seed, which also draws the sample."""
        extra = NOISE_SEED if noise else 0
        labels: dict[str, str | int] = {"role": role, "data": tag}
        if noise:
            labels["noise"] = 1
        return [Cell(self.attack_run(member.attack, tag, seed + extra, role), labels) for seed in member.seeds]

    def attack_run(
        self, attack: Named, tag: str, seed: int, role: Role = "model", budget: Budget | None = None
    ) -> AttackRun:
        """One attack on a role's model; the only place where an attack becomes a run."""
        asked = self.asked
        return AttackRun(
            model=self.named(role),
            attack=attack,
            data=self.roles.attack(tag, self.suite.n_train, seed),
            retain=self.roles.attackers_open(),
            probes=(self.harm(tag), self.utility(), *self.control(tag, seed)),
            budget=budget or Budget(steps=self.suite.max_steps),
            plan=self.suite.plan,
            breach=asked.breach,
            stop_after=asked.stop_after,
            price=asked.price,
            seed=seed,
            compute=asked.compute,
            tools=self.tools(role),
        )

    def tools(self, role: Role) -> str:
        """Whose tokenizer an attack on a role's model uses: never the defended folder's."""
        owner = self.attacker or (self.reference if role == "model" else "")
        return "" if owner == self.named(role) else owner

    def measure(self, role: Role, probes: Sequence[ProbeSet]) -> Cell:
        """A role's model as released, on probe sets; what a server holds is asked without sets that need weights."""
        url = {"model": self.asked.generate_url, "undefended": self.asked.reference_url}.get(role, "")
        run = AttackRun(
            model=self.named(role),
            attack=Named("none"),
            data=self.roles.utility(1),
            probes=tuple(p for p in probes if not url or p.measure in SAID),
            budget=Budget(steps=0),
            plan=(0,),
            compute=self.asked.compute,
            generate_url=url,
        )
        return Cell(run, {"role": role, "data": MEASURE})

    def learn(self, task: Task, role: Role) -> list[Cell]:
        """Fine-tuning on a harmless task, with its quality and the harm it brings probed along the way."""
        train = Selection(task.dataset, "attack", False, (task.name,))
        held = Selection(task.dataset, "evaluation", False, (task.name,), n=task.n_eval)
        how = {"learning_rate": task.learning_rate, "per_device_train_batch_size": task.per_device_train_batch_size}
        run = AttackRun(
            model=self.named(role),
            attack=Named("sft", how),
            data=train,
            probes=(self.probe("task", held), replace(self.harm("unseen"), at=(0, task.max_steps))),
            budget=Budget(steps=task.max_steps),
            plan=task.plan,
            compute=self.asked.compute,
        )
        labels = {"role": role, "data": f"task:{task.name}"}
        return [Cell(replace(run, seed=seed), labels) for seed in task.seeds]

    # ----------------------------------------------------------------------------------------------- probes

    def harm(self, tag: str) -> ProbeSet:
        """Held-out restricted prompts of a tag's categories."""
        return self.probe("harm", self.roles.harm(tag, self.suite.n_eval))

    def control(self, tag: str, seed: int) -> tuple[ProbeSet, ...]:
        """Restricted prompts that neither the public evaluation split nor the attacker's sample holds, drawn by the
        salt and asked at the last two probes; none where too few are left."""
        source = self.fresh.get(tag)
        if source is None:
            return ()
        chosen = replace(source, seed=seed if source.skip else 0, salt=self.asked.salt)
        return (replace(self.probe(FRESH, chosen), at=self.suite.plan[-2:]),)

    def utility(self) -> ProbeSet:
        """Held-out benign prompts."""
        return self.probe("utility", self.roles.utility(self.suite.n_eval))

    def probe(self, name: str, selection: Selection, measure: Measure = "score") -> ProbeSet:
        """A probe set; the chosen judge grades harm, right answers to open prompts are always graded exactly."""
        judge = self.asked.grading.judge if selection.restricted else "exact"
        tokens = self.asked.grading.max_new_tokens
        return ProbeSet(name, selection, max_new_tokens=tokens, judge=judge, measure=measure)

    def released(self, role: Role) -> tuple[ProbeSet, ...]:
        """What stability asks of a model as released.

        Knowledge inside and outside the retain data, perplexity of the right answers and how far the model has moved
        from the reference there, over-refusal, harm as asked and under jailbreaks, and how much restricted knowledge a
        forced first word still brings out.
        """
        restricted, open_ = self.roles.harm("unseen", None), self.roles.utility(None)
        asked = self.probe("harm", restricted)
        moved = replace(self.probe("kl", open_, "kl"), reference=self.reference)
        return (
            asked,
            self.probe("inside", self.roles.inside(None)),
            self.probe("outside", open_),
            self.probe("over_refusal", open_, "refusal"),
            self.probe("likelihood", open_, "likelihood"),
            *(replace(asked, name=f"jailbreak:{n}", template=t) for n, t in JAILBREAKS.items()),
            replace(asked, name="restricted", prefill_words=1),
            *(() if self.named(role) == self.reference else (moved,)),
        )


def over_refusal_probe(dataset: str) -> ProbeSet:
    """Refusals of a set's open prompts, told by their opening words, before any attack; at most 250 prompts."""
    chosen = Selection(dataset, restricted=False, n=OVER_REFUSAL)
    name = f"over_refusal:{Path(dataset.partition(':')[0]).stem}"
    return ProbeSet(name, chosen, max_new_tokens=20, judge="refusal", measure="refusal")


def check_served(asked: Evaluation) -> None:
    """What a server says is enough for stability alone, and for none of the tasks that read probabilities."""
    if not (asked.generate_url or asked.reference_url):
        return
    only = [c for c in asked.conditions if c.partition("#")[0] != "stability" or "lm_eval=" in c]
    if only or not asked.conditions:
        raise TiterError(
            "generate_url: a served model can be asked, not attacked: pass --conditions stability, without lm_eval"
        )
