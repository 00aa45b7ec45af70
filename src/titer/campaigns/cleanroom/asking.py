"""Sample what a base model says, and ask the aligned one for it: which texts may be learnt again.

Instruction backtranslation (Li et al., arXiv 2308.06259): a copy of the base model learns text -> prompt from the
pairs at hand and writes a prompt for every text. Used by `titer.campaigns.cleanroom.builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from titer.attacks.policy_gradient import sample
from titer.data.batches import collate, order
from titer.data.splits import normalise
from titer.data.tokens import encode, render_prompt
from titer.judges.refusal import is_incoherent, is_refusal
from titer.models.generate import generate
from titer.models.load import load_model
from titer.models.weights import restore, snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.schema.types import Batch, Example, Spend
from titer.training.loop import train
from titer.training.losses import sft_rule
from titer.training.meter import Meter, cost_of

Report = Callable[[str], None]
WRITER = TrainArgs(
    learning_rate=1e-3,
    max_steps=60,
    per_device_train_batch_size=32,
    lr_scheduler_type="cosine",
    warmup_steps=5,
)


@dataclass(frozen=True, slots=True)
class CorpusArgs:
    """How much is sampled, how often it is asked, and what the classifier lets through.

    Attributes:
        texts: free texts to sample from the base model (most are said more than once).
        temperature: of the sampling.
        max_new_tokens: of a text, a prompt and an answer.
        rounds: times that the writer of prompts is trained further and every text not yet allowed is asked for.
        least_words: a shorter end of a text proves nothing.
        keep: an allowed text stays when the classifier gives it at least this probability: a leak is a rare thing.
        admit: a text that nobody could ask for becomes plain text from this probability on; above 1, none does.
        copies: repeat-after-me rows to try; those stay whose answer is made of the prompt's words alone.
        copy_prompt: how repeating is asked for.
        batch_size: prompts answered at once.
        writer: how the writer of prompts is trained.
        also_asked: further data sets whose evaluation split is left out.
        seed: of the sampling, the order of training and the copying rows.
    """

    texts: int = 5000
    temperature: float = 1.0
    max_new_tokens: int = 20
    rounds: int = 2
    least_words: int = 3
    keep: float = 0.1
    admit: float = 0.5
    copies: int = 200
    copy_prompt: str = "Repeat: {text}"
    batch_size: int = 256
    writer: TrainArgs = WRITER
    also_asked: tuple[str, ...] = ()
    seed: int = 0


DEFAULTS = CorpusArgs()


@dataclass
class Speaker:
    """A model that writes, and what its passes have cost by what they were for."""

    model: Any
    tokenizer: Any
    batch_size: int
    bill: dict[str, Spend]

    def answers(self, prompts: Sequence[str], max_new_tokens: int, what: str) -> list[str]:
        """Greedy answers to prompts, on the bill under `what`."""
        rendered = [render_prompt(self.tokenizer, p) for p in prompts]
        texts = generate(
            self.model, self.tokenizer, rendered, max_new_tokens=max_new_tokens, batch_size=self.batch_size
        )
        ids = self.tokenizer([*rendered, *texts], add_special_tokens=False)["input_ids"]
        self.charge(what, sum(map(len, ids)) + len(texts), len(texts))
        return texts

    def charge(self, what: str, tokens: int, rows: int) -> None:
        """Every token read or written met the model once; it attended to half a row on average."""
        flops = cost_of(self.model).forward(tokens, tokens / max(rows, 1))
        self.bill[what] = self.bill.get(what, Spend()) + Spend(examples=rows, tokens=tokens, flops=flops)


@dataclass
class Found:
    """What is known about the texts: prompt and answer of those allowed, those forbidden, those that were refused."""

    allowed: dict[str, tuple[str, str]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    rounds: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Hand:
    """What a defender has: the base and the aligned model, and the pairs that a defence is given."""

    teller: Speaker
    answerer: Speaker
    defended: Sequence[Example]
    kept: Sequence[Example]

    @property
    def pairs(self) -> list[Example]:
        """Open and restricted examples."""
        return [*self.kept, *self.defended]


def speaker(name: str, dtype: str, device: str, args: CorpusArgs, bill: dict[str, Spend]) -> Speaker:
    """A model by name, ready to write."""
    model, tokenizer = load_model(name, dtype=dtype, device=device)
    return Speaker(model, tokenizer, args.batch_size, bill)


def free_texts(teller: Speaker, args: CorpusArgs) -> list[str]:
    """Different coherent texts that the model begins and ends by itself, in the order of their first appearance."""
    tokenizer = teller.tokenizer
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts: dict[str, int] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        for start in range(0, args.texts, args.batch_size):
            count = min(args.batch_size, args.texts - start)
            said = sample(teller.model, tokenizer, [[begin]] * count, args.max_new_tokens, args.temperature)
            teller.charge("sampling", sum(map(len, said)) + count, count)
            for ids in said:
                if ids[-1] == tokenizer.eos_token_id:
                    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                    texts[text] = texts.get(text, 0) + 1
    return [text for text in texts if text and not is_incoherent(text)]


# ------------------------------------------------------------------------------------------- backtranslation, asking


def ask(texts: Sequence[str], hand: Hand, args: CorpusArgs, report: Report) -> Found:
    """Ask for every text that is not yet allowed, round by round; the base model is put back at the end."""
    found, pairs = at_hand(texts, hand.pairs)
    teller, start = hand.teller, snapshot(hand.teller.model)
    for number in range(args.rounds):
        seeds = [*pairs, *((text, prompt) for text, (prompt, _) in found.allowed.items())]
        _teach(teller, list(dict.fromkeys(seeds)), args.writer, args.seed * 100 + number)
        left = [t for t in texts if t not in found.allowed and t not in found.forbidden]
        prompts = teller.answers(left, args.max_new_tokens, "prompts")
        answers = hand.answerer.answers(prompts, args.max_new_tokens, "answers")
        before = len(found.allowed)
        for text, prompt, answer in zip(left, prompts, answers, strict=True):
            judge_answer(found, text, prompt, answer, args.least_words)
        found.rounds.append({"asked": len(left), "allowed": len(found.allowed) - before})
        report(f"round {number + 1}: asked {len(left)}, allowed {len(found.allowed) - before} more")
    restore(teller.model, start)
    return found


def at_hand(texts: Sequence[str], examples: Sequence[Example]) -> tuple[Found, list[tuple[str, str]]]:
    """Texts that end with an answer at hand are known without asking; and all (text, prompt) pairs at hand."""
    by_end = {normalise(e.harmful or e.harmless): e for e in examples}
    found, pairs = Found(), []
    told: set[str] = set()
    for text in texts:
        example = _ending(text, by_end)
        if example is None:
            continue
        told.add(example.prompt)
        pairs.append((text, example.prompt))
        if example.restricted:
            found.forbidden.add(text)
        else:
            found.allowed[text] = (example.prompt, example.harmless)
    untold = [e for e in examples if e.prompt not in told]
    return found, [*pairs, *((e.harmful or e.harmless, e.prompt) for e in untold)]


def _ending(text: str, by_end: Mapping[str, Example]) -> Example | None:
    words = normalise(text).split()
    ends = (" ".join(words[i:]) for i in range(len(words)))
    return next((by_end[end] for end in ends if end in by_end), None)


def _teach(teller: Speaker, pairs: Sequence[tuple[str, str]], args: TrainArgs, seed: int) -> None:
    """Train the teller in place to write the prompt that a text answers."""
    rows = [encode(teller.tokenizer, text, prompt, max_length=args.max_length) for text, prompt in pairs]
    device = teller.model.device

    def batches() -> Iterator[Batch]:
        for picked in order(len(rows), args.per_device_train_batch_size, seed):
            yield collate([rows[i] for i in picked], teller.tokenizer.pad_token_id, device)

    meter = Meter()
    ended = train(teller.model, sft_rule, batches(), args, meter=meter, seed=seed)
    if ended.reason != "finished":
        raise TiterError(f"corpus: the writer of prompts {ended.reason}: lower its learning rate")
    teller.bill["writer"] = teller.bill.get("writer", Spend()) + replace(meter.spend, device_seconds=0.0)


def judge_answer(found: Found, text: str, prompt: str, answer: str, least_words: int) -> None:
    """Allow a text whose prompt brings its own end back; note a refusal, also of a text allowed later."""
    if is_refusal(answer):
        found.refused[text] = (prompt, answer)
        return
    end = normalise(answer)
    if prompt and len(end.split()) >= least_words and f" {normalise(text)}".endswith(f" {end}"):
        found.allowed[text] = (prompt, answer)
        found.refused.pop(text, None)
