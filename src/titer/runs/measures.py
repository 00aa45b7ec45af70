"""What is measured without generating: likelihood, divergence, multiple choice, the LM evaluation harness."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer.data.batches import IGNORE, collate
from titer.data.multiple_choice import Choice
from titer.data.tokens import encode
from titer.models.load import load_model, resolve
from titer.models.weights import fingerprint
from titer.schema.errors import TiterError
from titer.schema.files import read_json, write_json
from titer.schema.specs import Compute, Template
from titer.schema.types import Batch, Curve, Example, spec_id


@torch.inference_mode()
def likelihoods(
    model: Any, tokenizer: Any, examples: Sequence[Example], template: Template = Template(), batch_size: int = 16
) -> list[float]:
    """The geometric mean probability of an answer's tokens, per example: exp(-mean NLL), or 1 / perplexity.

    The answer is `harmful` where there is one, else `harmless`, with its end-of-turn token. Similar lengths share a
    batch. Raises `TiterError` for a prompt that fills the model's context.
    """

    def score(batch: Batch) -> Tensor:
        return _per_answer(-_answer_logs(model, batch).gather(1, _answers(batch)[:, None])[:, 0], batch).neg().exp()

    return _by_length(model, tokenizer, examples, template, batch_size, score)


@torch.inference_mode()
def divergences(
    model: Any,
    reference: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template = Template(),
    batch_size: int = 16,
) -> list[float | None]:
    """KL(reference || model) over the next token, in nats, averaged over an answer's tokens, per example.

    It is the extra nats per token that the model needs where text follows the reference. None everywhere when the two
    do not share a vocabulary. Rows, answers and errors as in `likelihoods`.
    """
    widths = {m.get_output_embeddings().weight.shape[0] for m in (model, reference)}
    if len(widths) > 1:
        return [None] * len(examples)

    def score(batch: Batch) -> Tensor:
        before, now = _answer_logs(reference, batch), _answer_logs(model, batch)
        return _per_answer((before.exp() * (before - now)).sum(1).clamp(min=0), batch)

    return [*_by_length(model, tokenizer, examples, template, batch_size, score)]


def _by_length(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template,
    batch_size: int,
    score: Callable[[Batch], Tensor],
) -> list[float]:
    """`score` of every example, in order; similar lengths share a batch; the model is in evaluation mode meanwhile."""
    limit = model.config.get_text_config().max_position_embeddings
    rows = [encode(tokenizer, e.prompt, e.harmful or e.harmless, template, limit) for e in examples]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found = [0.0] * len(rows)
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        batch = collate([rows[i] for i in group], tokenizer.pad_token_id or 0, model.device)
        for i, value in zip(group, score(batch).tolist(), strict=True):
            found[i] = value
    model.train(training)
    return found


def _answers(batch: Batch) -> Tensor:
    """Token ids of all answers of a batch (N,)."""
    labels = batch.labels[:, 1:]
    return labels[labels != IGNORE]


def _answer_logs(model: Any, batch: Batch) -> Tensor:
    """Log-probabilities (N, vocabulary) at the tokens of all answers."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    return torch.log_softmax(logits[batch.labels[:, 1:] != IGNORE].float(), -1)


def _per_answer(values: Tensor, batch: Batch) -> Tensor:
    """Mean (B,) of token values (N,) over each answer."""
    mask = batch.labels[:, 1:] != IGNORE
    spread = torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)
    return spread.sum(1) / mask.sum(1)


PREFIX = "lm_eval:"
METRICS = ("acc_norm", "acc", "exact_match")  # of a task that has several, the first counts
Scores = dict[str, tuple[float, ...]]


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise `TiterError` for a task the harness does not know, or when it is not installed."""
    if tasks:
        _find(tasks)


def with_tasks(
    curve: Curve, model: str, tasks: Sequence[str], root: str | Path, *, compute: Compute, limit: int | None
) -> Curve:
    """A measurement's curve with the scores of every task at step 0, as probe sets `lm_eval:TASK`."""
    if not tasks:
        return curve
    first, *rest = curve.points
    scores = task_scores(model, tasks, root, compute=compute, limit=limit)
    return replace(curve, points=(replace(first, scores={**first.scores, **scores}), *rest))


def task_scores(model: str, tasks: Sequence[str], root: str | Path, *, compute: Compute, limit: int | None) -> Scores:
    """Accuracy per sample (its first `limit` ones) of every task, in the order of the task's samples."""
    from importlib.metadata import version

    files = [_hash(Path(t)) for t in tasks if Path(t).is_dir()]
    known = [fingerprint(resolve(model)), sorted(tasks), files, limit, compute.dtype, version("lm_eval")]
    path = Path(root) / "lm_eval" / f"{spec_id(known, 12)}.json"
    if not path.is_file():
        write_json(path, _asked(model, tasks, compute, limit))
    return {name: tuple(row) for name, row in read_json(path).items()}


def _asked(model: str, tasks: Sequence[str], compute: Compute, limit: int | None) -> Scores:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    manager, names = _find(tasks)
    loaded, tokenizer = load_model(model, dtype=compute.dtype, device=compute.device)
    asked = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=16)
    try:
        found = lm_eval.simple_evaluate(model=asked, tasks=names, task_manager=manager, limit=limit, bootstrap_iters=0)
    except (OSError, ValueError, KeyError) as error:  # the harness wraps a data set it cannot fetch in any of these
        said = str(error).strip().splitlines()
        raise TiterError(
            f"lm_eval tasks {', '.join(tasks)}: {said[0] if said else type(error).__name__}: "
            "check the network, or pass a folder of local tasks"
        ) from None
    return {f"{PREFIX}{name}": _accuracies(name, samples) for name, samples in sorted(found["samples"].items())}


def _accuracies(task: str, samples: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    metric = next((m for m in METRICS if all(m in s for s in samples)), None)
    if metric is None:
        raise TiterError(f"lm_eval task {task}: no accuracy per sample: choose a task with {', '.join(METRICS)}")
    return tuple(float(s[metric]) for s in sorted(samples, key=lambda s: int(s["doc_id"])))


def _manager(folders: Sequence[str], *, builtin: bool) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        raise TiterError("lm_eval tasks: the LM evaluation harness is not installed: run pip install 'titer[eval]'")
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=list(folders), include_defaults=builtin)


def _find(tasks: Sequence[str]) -> tuple[Any, list[str]]:
    """The harness's index of tasks and the names asked for in it: a folder stands for every task in it."""
    folders = [t for t in tasks if Path(t).is_dir()]
    named = [t for t in tasks if t not in folders]
    manager = _manager(folders, builtin=bool(named))
    for task in named:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise TiterError(f"lm_eval task {task}: no such task or folder: {hint}")
    inside = _manager(folders, builtin=False).all_subtasks if folders else []
    if folders and not inside:
        raise TiterError(f"lm_eval tasks {', '.join(folders)}: no task YAML in this folder: check the path")
    return manager, [*named, *inside]


def _hash(folder: Path) -> str:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()


def choose(model: Any, tokenizer: Any, items: Sequence[Choice], batch_size: int = 32) -> list[int]:
    """The option the model finds likeliest per character, for each item (`acc_norm` of the LM evaluation harness).

    An option's score is the log-likelihood of `" " + option` after `"Question: …\\nAnswer:"`, divided by the option's
    characters; no chat template. `batch_size` counts options, not items.
    """
    rows = [_encode(tokenizer, item.question, option) for item in items for option in item.options]
    likelihoods = iter(_log_likelihoods(model, tokenizer.pad_token_id or 0, rows, batch_size))
    chosen = []
    for item in items:
        scores = [next(likelihoods) / max(len(option), 1) for option in item.options]
        chosen.append(max(range(len(scores)), key=scores.__getitem__))
    return chosen


def accuracy(model: Any, tokenizer: Any, items: Sequence[Choice], batch_size: int = 32) -> list[float]:
    """1.0 where the right option was chosen and 0.0 elsewhere, per item, so that intervals can be taken over items."""
    chosen = choose(model, tokenizer, items, batch_size)
    return [float(c == item.answer) for c, item in zip(chosen, items, strict=True)]


def _encode(tokenizer: Any, question: str, option: str) -> tuple[list[int], int]:
    """Token ids of question and option, and how many of them are the option's."""
    from titer.data.tokens import encode_prompt

    before = encode_prompt(tokenizer, f"Question: {question}\nAnswer:")
    answer = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
    return before + answer, len(answer)


def _log_likelihoods(
    model: Any, pad_id: int, rows: Sequence[tuple[list[int], int]], batch_size: int
) -> Iterator[float]:
    """Summed log-probability of each row's last tokens, in the order of `rows`; similar lengths share a batch."""
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        for i, value in zip(group, _batch(model, pad_id, [rows[i] for i in group]), strict=True):
            found[i] = value
    yield from found


@torch.inference_mode()
def _batch(model: Any, pad_id: int, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """One batch, padded on the left: then the options end together and only the last logits are needed."""
    width, kept = max(len(ids) for ids, _ in rows), max(n for _, n in rows)
    ids = torch.tensor([[pad_id] * (width - len(r)) + r for r, _ in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r, _ in rows], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept + 1)
    logs = out.logits[:, -kept - 1 : -1].float().log_softmax(-1)
    told = logs.gather(2, ids[:, -kept:, None])[..., 0]
    return [float(row[kept - n :].sum()) for row, (_, n) in zip(told, rows, strict=True)]
