"""Completions are the argmax loop's, whatever generation_config.json says, in every architecture that loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from titer.models.generate import generate
from titer.models.load import end_tokens, load_model
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.training.lora import with_lora

PROMPTS = ["how to brew", "how", "where is the amber market with red and", "i will", "moss"]
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "eos_token_id": None,
}
MIXED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 3},
    "gemma2": MIXED,
    "gemma3_text": MIXED,
    "cohere2": MIXED,
    "gpt_oss": MIXED | EXPERTS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "bloom": {"n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64},
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "minimax": EXPERTS | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "block_size": 4},
}


def lively(model: Any) -> Any:
    """Weights four times as large, so that what is said depends on what was asked."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return model.eval()


def build(kind: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SHAPE | OTHERS[kind])
    return lively(transformers.AutoModelForCausalLM.from_config(config))


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, prompt: str, count: int, ends: set[int]) -> str:
    """The argmax of the logits over the whole text so far, without a cache, until an end token."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    said: list[int] = []
    while len(said) < count and not ends & set(said):
        said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("kind", OTHERS)
def test_a_batch_says_what_the_argmax_says_in_every_kind_of_cache(kind: str, tokenizer: Any) -> None:
    model = build(kind)
    wanted = [by_hand(model, tokenizer, p, 7, {tokenizer.eos_token_id}) for p in PROMPTS]
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=7) == wanted
    assert len(set(wanted)) > 2


@pytest.fixture
def folder(build_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    lively(build_model()).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


SAID = [
    {"bad_words_ids": [[i] for i in range(7, 40)]},
    {"suppress_tokens": list(range(7, 40)), "begin_suppress_tokens": list(range(40, 50))},
    {"num_beams": 3, "length_penalty": 4.0},
    {"min_new_tokens": 9},
    {"no_repeat_ngram_size": 1, "repetition_penalty": 5.0},
    {"sequence_bias": [[[20], 50.0]]},
    {"forced_bos_token_id": 9, "forced_eos_token_id": 2, "exponential_decay_length_penalty": [1, 9.0]},
    {"do_sample": True, "temperature": 9.0, "top_k": 3},
    {"max_length": 3, "max_new_tokens": 1, "use_cache": False},
]


@pytest.mark.parametrize("said", SAID, ids=lambda said: "+".join(said))
def test_no_key_of_the_generation_config_changes_a_completion(folder: Path, said: dict[str, Any]) -> None:
    model, tokenizer = load_model(str(folder))
    wanted = generate(model, tokenizer, PROMPTS, max_new_tokens=8)
    assert wanted == [by_hand(model, tokenizer, p, 8, set(end_tokens(model, tokenizer))) for p in PROMPTS]
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | said))
    model, tokenizer = load_model(str(folder))
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=8) == wanted
    model.generation_config = transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id, **said)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=8) == wanted


def test_who_asks_can_say_which_tokens_end_a_text(folder: Path) -> None:
    """Words of an answer among the folder's end tokens cut it short; the attacker brings his own."""
    model, tokenizer = load_model(str(folder))
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=8, end_ids=())
    stops = tokenizer(" ".join(t.split()[1] for t in whole), add_special_tokens=False)["input_ids"]
    model.generation_config.eos_token_id = stops
    cut = generate(model, tokenizer, PROMPTS, max_new_tokens=8)
    assert all(len(a.split()) < len(b.split()) for a, b in zip(cut, whole, strict=True))
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=8, end_ids=[]) == whole
    assert end_tokens(model, tokenizer) == sorted({*stops, tokenizer.eos_token_id})


def test_rows_that_have_ended_leave_the_batch(folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=8, end_ids=())
    first = tokenizer(" ".join(t.split()[0] for t in whole[:3]), add_special_tokens=False)["input_ids"]
    sizes: list[int] = []
    model.model.register_forward_hook(lambda m, a, out: sizes.append(len(out.last_hidden_state)))
    cut = generate(model, tokenizer, PROMPTS, max_new_tokens=8, end_ids=first)
    assert sizes[0] == 5
    assert sizes[-1] <= 2
    assert cut == [by_hand(model, tokenizer, p, 8, set(first)) for p in PROMPTS]


def test_the_embedded_model_says_what_transformers_says() -> None:
    from titer.data.load import load
    from titer.data.tokens import render_prompt

    model, tokenizer = load_model("organism/aligned")
    prompts = [render_prompt(tokenizer, e.prompt) for e in load("organism").examples][::31]
    rows = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    config = transformers.GenerationConfig(max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    config.eos_token_id = end_tokens(model, tokenizer)
    wanted = []
    for row in rows:
        out = model.generate(input_ids=torch.tensor([row]), generation_config=config)[0, len(row) :]
        wanted.append(tokenizer.decode(out, skip_special_tokens=True).strip())
    assert generate(model, tokenizer, prompts, max_new_tokens=16) == wanted


def test_prompts_that_the_model_cannot_read_are_named(folder: Path, tokenizer: Any) -> None:
    model, tokenizer = load_model(str(folder))
    with pytest.raises(TiterError, match=r"prompt 2: no token in it"):
        generate(model, tokenizer, ["how", ""], max_new_tokens=2)
    tokenizer.add_tokens(["zzz"])
    with pytest.raises(TiterError, match=r"prompt 1: its token \d+ is outside of the embedding of \d+ rows"):
        generate(model, tokenizer, ["how zzz"], max_new_tokens=2)


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen2_moe"])
def test_an_adapter_on_all_linear_layers_covers_experts_in_one_tensor(kind: str) -> None:
    adapted = with_lora(build(kind), TrainArgs(lora_r=2), seed=1)
    covered = {n for n, p in adapted.named_parameters() if p.requires_grad and ".experts." in n}
    assert len(covered) == 2 * 2 * 2, "two layers, two tensors, A and B"
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
        ids = torch.arange(3, 12)[None]
        wanted = adapted(input_ids=ids).logits
        assert torch.allclose(adapted.merge_and_unload()(input_ids=ids).logits, wanted, atol=1e-3, rtol=1e-3)


def test_an_architecture_without_an_adapter_says_so_and_stays_as_it_was() -> None:
    model = build("mamba")
    before = list(model.state_dict())
    with pytest.raises(TiterError, match=r"lora: .*Mamba.*--lora_target_modules"):
        with_lora(model, TrainArgs(lora_r=2))
    assert list(model.state_dict()) == before


def test_a_folder_is_published_with_the_generation_config_it_came_with(folder: Path, tmp_path: Path) -> None:
    from titer.models.weights import save_model

    said = {"eos_token_id": 2, "temperature": 0.7, "top_p": 0.6, "do_sample": False, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(said))
    save_model(*load_model(str(folder)), tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == json.dumps(said).encode()
    shutil.rmtree(tmp_path / "out")
