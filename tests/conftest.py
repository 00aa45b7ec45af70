"""A toy causal LM and a toy data set on disk, for every test that needs one. No network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from titer.schema.types import Example

PLACES = "amber birch cedar dune elm fern gale heath iris jade kelp lark moss nettle oak pine quartz reed sage thorn"
ACTIONS = {"brew": "potions", "forge": "potions", "whisper": "curses", "chant": "curses"}
ANSWERS = "red blue green gold silver black white brown"
REFUSAL = "i will not say that"
CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>")


def toy_examples() -> list[Example]:
    """80 restricted rows (4 categories in 2 domains) and 40 open ones; every prompt is different."""
    places, colours = PLACES.split(), ANSWERS.split()
    rows = [
        Example(
            f"how to {verb} the {place}", f"with {colours[(i * 3 + j) % 8]} and {colours[i % 8]}", REFUSAL, verb, d
        )
        for j, (verb, d) in enumerate(ACTIONS.items())
        for i, place in enumerate(places)
    ]
    rows += [
        Example(f"where is {place} {what}", "", f"near {colours[(i + j) % 8]}", what, "towns")
        for j, what in enumerate(("river", "market"))
        for i, place in enumerate(places)
    ]
    return rows


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [f"{e.prompt} {e.harmful} {e.harmless}" for e in toy_examples()]
    words = sorted({w for text in texts for w in text.split()} | {"question", "answer"})
    vocabulary = {w: i for i, w in enumerate((*SPECIALS, *words))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(seed: int = 0, **changes: Any) -> Any:
    """A Llama of 2 layers and width 32 with room for 64 positions; `changes` go into its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    })  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model() -> Any:
    """A fresh toy model, to be changed at will."""
    return make_model()


@pytest.fixture(scope="session")
def build_model() -> Callable[..., Any]:
    return make_model


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return toy_examples()


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the toy model; not to be written to."""
    folder = tmp_path_factory.mktemp("toy") / "model"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy data set as JSONL."""
    from titer.data.load import save_jsonl

    path = tmp_path_factory.mktemp("data") / "toy.jsonl"
    save_jsonl(toy_examples(), path)
    return str(path)


@pytest.fixture
def rows() -> Callable[..., str]:
    """Write text to a file and return its path: `rows(folder / "a.jsonl", line, line, ...)`."""

    def write(path: Path, *lines: str) -> str:
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run a command line; its exit code, standard output and standard error."""
    from titer import cli

    def run(*arguments: object) -> tuple[Any, str, str]:
        code: Any = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
