"""What to run, as data: selections of examples, probe sets, and the two kinds of run. No torch.

Everything that can change a result is a field; `run_id` hashes it, so equal specs are the same run and are done once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from titer.schema.breach import Breach
from titer.schema.types import Budget, Role, spec_id, to_json

Split = Literal["defence", "attack", "evaluation", "any"]
Measure = Literal["score", "refusal", "choice", "likelihood", "kl"]
DEFAULT_PLAN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
LEAST = {
    "learning_rate": 0,
    "max_steps": 0,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "max_length": 2,
    "lora_r": 0,
}
SAID = ("score", "refusal")  # measures of a probe set that need what the model says, and not its weights
SPEC_VERSION = 2  # raise when the code changes what a spec means, so that old runs are not taken for new ones


def plan_to(steps: int) -> tuple[int, ...]:
    """The default probe steps below `steps`, and `steps`."""
    return tuple(sorted({*(p for p in DEFAULT_PLAN if p < steps), steps}))


@dataclass(frozen=True, slots=True)
class Selection:
    """Examples of one data set: a split by hash, restricted or open ones, some categories or domains, at most `n`.

    `n` examples are drawn by `seed`; `None` takes all. `categories` and `domains` empty mean all of them. `skip`
    leaves the first so many of the seed's order out (what another selection took) and draws from the rest by `salt`.
    """

    dataset: str
    split: Split = "any"
    restricted: bool | None = None
    categories: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    n: int | None = None
    seed: int = 0
    skip: int = 0
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """How a prompt is put to the model: chat template or plain text, system line, words around it, forced start.

    `kind="chat"` uses the tokenizer's chat template when it has one and plain text otherwise; `prefill` is text the
    assistant turn already starts with. `enable_thinking` is handed to chat templates that think (Qwen3, SmolLM3;
    DeepSeek and Granite call it `thinking`); None leaves it to them. `date_string` is the day that templates which
    write one are told, as in "26 Jul 2024": a prompt does not depend on the day it is asked. Used for training and
    for testing, which need not match.
    """

    kind: Literal["chat", "plain", "alpaca"] = "chat"
    system: str = ""
    prefix: str = ""
    suffix: str = ""
    prefill: str = ""
    enable_thinking: bool | None = None
    date_string: str = "26 Jul 2024"


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Prompts put to the model at every probe, and how their completions are scored.

    `measure="score"`: the judge's score against the example's answer; `"refusal"`: 1 where the outcome is `refuse`;
    `"choice"`: 1 where the likeliest option of a multiple-choice set is the right one; `"likelihood"`: 1 / perplexity
    of the right answer; `"kl"`: nats per token of the right answer that the model is away from the model `reference`.
    For the last three nothing is generated.
    `at` limits the set to some steps (`(0,)` for what is only asked of the untouched model); empty means every probe.
    `prefill_words` forces that many words of the example's own answer as the start of the completion.
    """

    name: str
    selection: Selection
    template: Template = Template()
    max_new_tokens: int = 24
    judge: str = "exact"
    measure: Measure = "score"
    at: tuple[int, ...] = ()
    prefill_words: int = 0
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """What computing costs: a device rented by the hour and the FLOPs a second it sustains in training.

    The default is an assumption, not a quote: 2.50 USD an hour for 4e14 FLOP/s. Replace it by your own.
    """

    usd_per_hour: float = 2.5
    flops_per_second: float = 4e14

    @property
    def usd_per_exaflop(self) -> float:
        """Dollars for 1e18 FLOPs."""
        return 1e18 / self.flops_per_second / 3600 * self.usd_per_hour


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in what precision a run computes.

    Attributes:
        dtype: float32, bfloat16 or float16; what trains in 16 bits keeps float32 copies.
        device: cpu, cuda, cuda:N or mps.
        accelerate_config: several processes: fsdp2, multi_gpu (:N for N of them) or a file of `accelerate config`.
        load_in_4bit: train an adapter on a 4-bit copy of the model (extra `bnb`).
    """

    dtype: str = "float32"
    device: str = "cpu"
    accelerate_config: str = ""
    load_in_4bit: bool = False


@dataclass(frozen=True, slots=True)
class TrainArgs:
    """Hyper-parameters of the training loop, in Hugging Face's spellings; the seed decides order and every draw.

    `group_by_length` puts rows of like length into one batch; `padding_free` lays the rows of a batch end to end in
    one row without padding, for supervised fine-tuning (the loss is the same).
    """

    learning_rate: float = 1e-4
    max_steps: int = 100
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    optim: str = "adamw"
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 256
    shuffle: bool = True
    group_by_length: bool = False
    padding_free: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    lora_r: int = 0
    lora_alpha: int = 16
    lora_target_modules: str = "all-linear"

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")


ALIGN = TrainArgs(learning_rate=1e-3, max_steps=60, lr_scheduler_type="linear", warmup_steps=5, lora_r=8)
FINE_TUNE = TrainArgs(learning_rate=3e-3, max_steps=100, lora_r=16, lora_alpha=32)  # how a provider tunes


@dataclass(frozen=True, slots=True)
class Named:
    """A configured defence, guard, attack or judge by registry name (or import path) and its non-default fields."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImmunizeRun:
    """Make a defended model: a defence, the pairs it sees, the benign data it may keep, and how it is trained.

    `base` is the model before its alignment, for defences that extrapolate from it. `accelerate_config` (`fsdp2`,
    `multi_gpu`, with `:N` for N processes) does the run on several processes, see `titer.runs.processes`.
    """

    model: str
    defence: Named
    data: Selection
    retain: Selection | None = None
    train: TrainArgs = TrainArgs()
    base: str = ""
    seed: int = 0
    compute: Compute = Compute()
    kind: Literal["immunize"] = "immunize"


@dataclass(frozen=True, slots=True)
class AttackRun:
    """Attack (or merely measure, with `max_steps` 0) a model under a budget, with probes along the way.

    `generate_url` is an OpenAI-compatible server that holds the model and writes its completions: for runs that leave
    the weights alone. `tools` names the model (folder, embedded name, hub id) whose tokenizer, chat template and end
    tokens are used instead of the model's own: an attacker takes the weights and nothing else. "" is the model's own.
    """

    model: str
    attack: Named
    data: Selection
    probes: tuple[ProbeSet, ...]
    budget: Budget
    retain: Selection | None = None
    plan: tuple[int, ...] = DEFAULT_PLAN
    breach: Breach = Breach()
    stop_after: int = -1
    price: Price = Price()
    seed: int = 0
    compute: Compute = Compute()
    generate_url: str = ""
    tools: str = ""
    kind: Literal["attack"] = "attack"


Run = ImmunizeRun | AttackRun


def run_id(run: Run, fingerprints: Mapping[str, str]) -> str:
    """Content address of a run: its spec, the hashes of its model and data sets, and the spec version."""
    placed = replace(run.compute, device=run.compute.device.partition(":")[0])
    run = replace(run, model=fingerprints["model"], compute=placed)
    if isinstance(run, AttackRun):  # a reference counts by its content too, whatever it is called
        run = replace(run, probes=tuple(replace(p, reference="yes" if p.reference else "") for p in run.probes))
        run = replace(run, tools="")  # and so do tools: `fingerprints` has them where they are not the model's own
    spec = to_json(run)
    return f"{run.kind}-{spec_id({'spec': spec, 'inputs': fingerprints, 'version': SPEC_VERSION}, 12)}"


def selections(run: Run) -> dict[str, Selection]:
    """Every selection a run reads, by role: `data`, `retain`, and one per probe set."""
    found = {"data": run.data}
    if run.retain is not None:
        found["retain"] = run.retain
    if isinstance(run, AttackRun):
        found |= {f"probe:{p.name}": p.selection for p in run.probes}
    return found


ADAMW_8BIT = "adamw_8bit"


@dataclass(frozen=True)
class Cell:
    """A run of the study with its labels. `needs` is the id of the run that makes its model, "" when that is given."""

    run: Run
    labels: Mapping[str, str | int]
    needs: str = ""

    @property
    def key(self) -> str:
        """The cell's own name within the study, known before its model is made."""
        return f"{self.run.kind}-{spec_id(self.run, 12)}"

    @property
    def role(self) -> Role:
        """The role that its curve is read under."""
        return cast(Role, self.labels.get("role", "model"))

    @property
    def noise(self) -> bool:
        """Whether it is the second half of the comparison of the undefended model with itself."""
        return "noise" in self.labels

    @property
    def steps(self) -> int:
        """Optimiser steps it takes at most."""
        return self.run.train.max_steps if isinstance(self.run, ImmunizeRun) else self.run.budget.steps or 0

    @property
    def group(self) -> str:
        """Cells of a group take about as long as each other."""
        return f"{self.run.kind}/{self.labels.get('attack', self.labels['defence'])}"
