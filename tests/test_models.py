"""Loading, the parts of every family, generation, snapshots, and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from titer.models import generate as generate_module
from titer.models.generate import generate
from titer.models.load import load_model
from titer.models.parts import parts
from titer.models.weights import fingerprint, frozen, restore, save_model, snapshot
from titer.schema.errors import TiterError
from titer.schema.specs import TrainArgs
from titer.training.lora import with_lora

SHAPE = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
TYPES = {"layer_types": ["full_attention"] * 3, "head_dim": 8, "num_key_value_heads": 1}
CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, num_key_value_heads=1),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, num_key_value_heads=1),
    "gemma2": lambda: transformers.Gemma2Config(**SHAPE, **TYPES),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SHAPE, **TYPES),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=3, n_head=2),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
    "phi": lambda: transformers.PhiConfig(**SHAPE),
}


def copy(folder: str, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def complaint(name: Path | str) -> str:
    """What loading complains of: one line, within 2 s (of CPU, so that a busy machine fails nobody)."""
    started = time.process_time()
    with pytest.raises(TiterError) as caught:
        load_model(str(name))
    assert time.process_time() - started < 2
    assert "\n" not in str(caught.value)
    assert str(name) in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_parts_of_every_family(family: str, adapted: bool) -> None:
    """Hidden states really pass through what `parts` names, in order, and end in the head's logits."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    if adapted:
        model = with_lora(model, TrainArgs(lora_r=2))
    found = parts(model)
    assert len(found.layers) == len(found.mlps) == len(found.attentions) == 3
    called: list[str] = []
    ends: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            called.append(name)
            ends[name] = output[0] if isinstance(output, tuple) else output

        return hook

    named = {"embedding": found.embedding, "norm": found.final_norm, "head": found.head}
    for kind in ("layers", "mlps", "attentions"):
        named |= {f"{kind}{i}": m for i, m in enumerate(getattr(found, kind))}
    for name, module in named.items():
        module.register_forward_hook(note(name))
    logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    each = [f"{kind}{i}" for i in range(3) for kind in ("attentions", "mlps", "layers")]
    assert sorted(called) == sorted(["embedding", *each, "norm", "head"])
    assert [c for c in called if c.startswith("layers")] == ["layers0", "layers1", "layers2"]
    assert called[0] == "embedding"
    assert called[-2:] == ["norm", "head"]
    if family != "gemma2":  # caps its logits
        assert torch.equal(ends["head"], logits)


def test_an_unknown_architecture_says_what_was_looked_for() -> None:
    with pytest.raises(TiterError, match=r"Bloom.*unknown architecture, looked for Llama.*model.layers.*FAMILIES"):
        parts(
            transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=31, hidden_size=16, n_layer=1, n_head=2))
        )


def test_what_is_saved_is_loaded(toy_model: str, build_model: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = load_model(toy_model)
    assert not model.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in build_model().state_dict().items())
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", "<pad>")
    save_model(model, tokenizer, tmp_path / "again")
    assert load_model(str(tmp_path / "again"))[1].chat_template == tokenizer.chat_template


def test_dtype_and_fresh_weights(toy_model: str) -> None:
    assert load_model(toy_model, dtype="bfloat16")[0].dtype == torch.bfloat16
    state = torch.random.get_rng_state()
    one, same, other = (load_model(f"random:{toy_model}", seed=s)[0].lm_head.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(TiterError, match="unknown dtype 'float23': did you mean float32"):
        load_model(toy_model, dtype="float23")


def test_an_adapter_folder_is_its_base_with_the_adapter_merged(toy_model: str, tmp_path: Path) -> None:
    adapted = with_lora(load_model(toy_model)[0], TrainArgs(lora_r=2))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    adapted.peft_config["default"].base_model_name_or_path = toy_model
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.tensor([[3, 4, 5]])
    wanted = adapted(input_ids=ids).logits
    model, tokenizer = load_model(str(tmp_path / "adapter"))
    assert not any("lora" in k for k in model.state_dict())
    assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-5)
    assert tokenizer.chat_template


# ----------------------------------------------------------------------------------------------------- bad folders


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "~/none", "none", "nobody/nothing", "no model"])
def test_a_model_that_is_not_there(name: str) -> None:
    assert "no such folder" in complaint(name) or "neither a folder nor" in complaint(name)


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert "hub cannot be reached" in complaint("nobody/nothing")
    assert len(asked) == 1


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json or adapter_config.json" in complaint(tmp_path)


def test_weights_that_are_missing(toy_model: str, tmp_path: Path) -> None:
    folder = copy(toy_model, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded" in complaint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000])
def test_weights_cut_off(toy_model: str, tmp_path: Path, keep: int) -> None:
    folder = copy(toy_model, tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    assert "damaged" in complaint(folder) or "cannot be loaded" in complaint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(toy_model: str, tmp_path: Path, value: float) -> None:
    model, tokenizer = load_model(toy_model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = value
    with pytest.raises(TiterError, match=r"out: weights hold NaN or infinity in model.layers.1.mlp.up_proj.weight"):
        save_model(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert "NaN or infinity in model.layers.1.mlp.up_proj.weight" in complaint(tmp_path / "m")


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_checkpoint_with_a_hole_is_not_filled_with_noise(toy_model: str, tmp_path: Path, lost: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(toy_model, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert lost in complaint(folder)


def test_a_checkpoint_of_another_shape(toy_model: str, tmp_path: Path) -> None:
    folder = copy(toy_model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    assert "cannot be loaded" in complaint(folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "no-such-type"}'])
@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_config_that_is_damaged(toy_model: str, tmp_path: Path, text: str, prefix: str) -> None:
    folder = copy(toy_model, tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(TiterError) as caught:
        load_model(f"{prefix}{folder}")
    assert "cannot be loaded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer(toy_model: str, tmp_path: Path) -> None:
    folder = copy(toy_model, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "tokenizer" in complaint(folder)


def test_an_adapter_that_is_damaged_or_without_its_base(toy_model: str, tmp_path: Path) -> None:
    adapted = with_lora(load_model(toy_model)[0], TrainArgs(lora_r=2))
    adapted.peft_config["default"].base_model_name_or_path = toy_model
    adapted.save_pretrained(str(tmp_path / "a"))
    whole = (tmp_path / "a" / "adapter_config.json").read_text()
    for text, message in ((whole.replace(toy_model, "/none/at/all"), "/none/at/all: no such folder"), ("{", "loaded")):
        (tmp_path / "a" / "adapter_config.json").write_text(text)
        with pytest.raises(TiterError, match=message):
            load_model(str(tmp_path / "a"))
    (tmp_path / "a" / "adapter_config.json").write_text(whole)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"1234")
    assert "cannot be loaded" in complaint(tmp_path / "a") or "damaged" in complaint(tmp_path / "a")


# ------------------------------------------------------------------------------------------- snapshots, fingerprint


def test_restoring_is_exact_and_clears_what_was_left_behind(model: Any) -> None:
    saved = snapshot(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1).add_(0.3)
    model.lm_head.weight.requires_grad_(False)
    model.train()
    model(input_ids=torch.tensor([[3]])).logits.sum().backward()
    restore(model, saved)
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_frozen_gives_back_what_it_found(model: Any) -> None:
    model.lm_head.weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_fingerprint_covers_what_decides_the_answers(toy_model: str, tmp_path: Path, file: str) -> None:
    folder = copy(toy_model, tmp_path / "m")
    assert fingerprint(str(folder)) == fingerprint(toy_model)
    (folder / "README.md").write_text("words")
    (folder / "titer.json").write_text("{}")
    assert fingerprint(str(folder)) == fingerprint(toy_model)
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    assert fingerprint(str(folder)) != fingerprint(toy_model)


# --------------------------------------------------------------------------------------------------------- generate


def test_batching_does_not_change_what_is_said(toy_model: str) -> None:
    model, tokenizer = load_model(toy_model)
    model.generation_config.eos_token_id = None
    prompts = ["how to brew", "how", "where is the amber market with red and", "i will", "moss"]
    alone = [generate(model, tokenizer, [p], max_new_tokens=6)[0] for p in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=2) == alone
    assert len(set(alone)) > 1
    assert generate(model, tokenizer, [], max_new_tokens=6) == []


def test_generation_leaves_the_model_as_it_was(toy_model: str) -> None:
    model, tokenizer = load_model(toy_model)
    model.train()
    generate(model, tokenizer, ["how to"], max_new_tokens=2)
    assert model.training


def test_an_answer_stops_at_the_end_of_the_turn(toy_model: str) -> None:
    """The tokenizer's end token counts even where the generation config names another one."""
    model, tokenizer = load_model(toy_model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.abs_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    said: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: said.append(1))
    for other in (None, 5, [5, 6]):
        model.generation_config.eos_token_id = other
        said.clear()
        assert generate(model, tokenizer, ["how to brew"], max_new_tokens=9) == [""]
        assert len(said) == 1


def test_a_prompt_longer_than_the_context_is_named(toy_model: str) -> None:
    model, tokenizer = load_model(toy_model)
    with pytest.raises(TiterError, match=r"prompt 2: 60 tokens \+ 5 new ones exceed the context of 64: shorten"):
        generate(model, tokenizer, ["how", "how " * 60], max_new_tokens=5)
    assert generate_module.generate(model, tokenizer, ["how " * 59], max_new_tokens=5)
