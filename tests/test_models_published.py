"""Adapters as models, pad tokens without a row, and what a published folder holds."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from titer.models.generate import generate
from titer.models.load import TOKENIZER_FILES, load_model
from titer.models.quantize import trains
from titer.models.weights import save_model
from titer.runs import verbs as verbs_module
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data, Immunization
from titer.schema.specs import TrainArgs

IDS = torch.arange(3, 21).reshape(2, 9)
LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}


@pytest.fixture
def base(build_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., str]:
    def make(tied: bool) -> str:
        folder = tmp_path / f"base-{tied}"
        build_model(tie_word_embeddings=tied).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def adapter(base: str, folder: Path, config: Any, *, added: int = 0) -> torch.Tensor:
    """Write an adapter with livelier weights; its logits."""
    from peft import get_peft_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if added:
        tokenizer.add_tokens([f"word{i}" for i in range(added)])
        model.resize_token_embeddings(len(tokenizer))
    wrapped = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
        wrapped.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        logits: torch.Tensor = wrapped(input_ids=IDS).logits
    return logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"target_modules": "all-linear"}, 0),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 0),
        ({"target_modules": ["q_proj", "lm_head"]}, 0),
        ({"target_modules": ["embed_tokens", "lm_head"]}, 0),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, 0),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, 9),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}, 0),
    ],
    ids=["linear", "embedding", "head", "both", "saved", "resized", "tokens"],
)
def test_an_adapter_gives_its_own_logits_before_and_after_publishing(
    base: Callable[..., str], tmp_path: Path, tied: bool, options: dict[str, Any], added: int
) -> None:
    from peft import LoraConfig

    wanted = adapter(base(tied), tmp_path / "a", LoraConfig(**LORA, **options), added=added)
    model, tokenizer = load_model(str(tmp_path / "a"))
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, wanted, atol=1e-4)
        save_model(model, tokenizer, tmp_path / "out")
        again = load_model(str(tmp_path / "out"))[0]
        assert torch.allclose(again(input_ids=IDS).logits, wanted, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_trained_on_a_tied_embedding_is_published_as_it_was_trained(
    base: Callable[..., str], toy_data: str, tmp_path: Path
) -> None:
    args = TrainArgs(learning_rate=1e-2, max_steps=3, lora_r=2, lora_target_modules="q_proj,embed_tokens")
    first = tmp_path / "first"
    verbs_module.immunize(base(True), Immunization("safety-sft", data=Data(toy_data), train=args), output_dir=first)
    model = load_model(str(first))[0]
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    start = load_model(base(True))[0]
    assert torch.equal(model.lm_head.weight, start.lm_head.weight), "the adapter was on the embedding alone"
    verbs_module.immunize(
        base(True),
        Immunization("safety-sft", data=Data(toy_data), train=TrainArgs(max_steps=1)),
        output_dir=tmp_path / "second",
    )
    again = load_model(str(tmp_path / "second"))[0]
    assert again.lm_head.weight is again.model.embed_tokens.weight, "the kept model was untied for good"


@pytest.mark.filterwarnings("ignore")
def test_adapters_that_cannot_be_merged_say_why(base: Callable[..., str], tmp_path: Path) -> None:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

    for kind in (PromptTuningConfig, PrefixTuningConfig):
        folder = tmp_path / kind.__name__
        adapter(base(False), folder, kind(task_type="CAUSAL_LM", num_virtual_tokens=2))
        with pytest.raises(TiterError, match="adapter adds to the prompt and cannot be merged"):
            load_model(str(folder))
    adapter(base(False), tmp_path / "big", LoraConfig(**LORA, target_modules=["q_proj", "lm_head"]), added=9)
    from safetensors.torch import load_file, save_file

    held = load_file(tmp_path / "big" / "adapter_model.safetensors")
    kept = {k: v for k, v in held.items() if "lora" in k}
    save_file(kept, tmp_path / "big" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TiterError, match=r"vocabulary of \d+ tokens, its base has \d+"):
        load_model(str(tmp_path / "big"))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_a_hole_is_refused(base: Callable[..., str], tmp_path: Path) -> None:
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    adapter(base(False), tmp_path / "a", LoraConfig(**LORA, target_modules="all-linear"))
    file = tmp_path / "a" / "adapter_model.safetensors"
    held = load_file(file)
    del held[next(k for k in held if "lora_B" in k)]
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(TiterError, match="incomplete adapter"):
        load_model(str(tmp_path / "a"))


# ------------------------------------------------------------------------------------------------------ pad tokens


@pytest.fixture
def odd(toy_model: str, tmp_path: Path) -> str:
    """The toy model with a pad token that its embedding has no row for."""
    folder = tmp_path / "odd"
    shutil.copytree(toy_model, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(toy_model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_pad_token_without_a_row_changes_no_bit(odd: str, toy_model: str, toy_data: str, tmp_path: Path) -> None:
    assert transformers.AutoTokenizer.from_pretrained(odd).pad_token_id >= load_model(odd)[0].config.vocab_size
    states, texts = [], []
    args = TrainArgs(learning_rate=1e-2, max_steps=2, per_device_train_batch_size=4)
    for name, source in (("odd", odd), ("plain", toy_model)):
        verbs_module.immunize(
            source, Immunization("safety-sft", data=Data(toy_data), train=args), output_dir=tmp_path / f"{name}-out"
        )
        model, tokenizer = load_model(str(tmp_path / f"{name}-out"))
        states.append(model.state_dict())
        texts.append(generate(model, tokenizer, ["how to brew", "how"], max_new_tokens=4))
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert texts[0] == texts[1]


def test_a_token_that_the_template_needs_and_the_embedding_lacks_is_named(toy_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(toy_model, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(toy_model)
    rows = load_model(toy_model)[0].config.vocab_size
    tokenizer.add_tokens(["<|turn|>"])
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<assistant>", "<|turn|>")
    tokenizer.save_pretrained(folder)
    with pytest.raises(TiterError, match=rf"'<\|turn\|>' is number {rows} and its embedding has {rows} rows"):
        load_model(str(folder))


# ------------------------------------------------------------------------------------------------ published folders


@pytest.mark.parametrize("lora_r", [0, 2])
def test_a_published_folder_has_the_tokenizer_it_came_with_and_files_all_may_read(
    toy_model: str, toy_data: str, tmp_path: Path, lora_r: int
) -> None:
    source = tmp_path / "m"
    shutil.copytree(toy_model, source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"padding_side": "left", "pad_token": None, "note": "as it came"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    before = os.umask(0o022)
    try:
        args = TrainArgs(max_steps=1, lora_r=lora_r)
        verbs_module.immunize(
            str(source), Immunization("safety-sft", data=Data(toy_data), train=args), output_dir=tmp_path / "out"
        )
    finally:
        os.umask(before)
    for name in TOKENIZER_FILES:
        assert (source / name).is_file() == (tmp_path / "out" / name).is_file()
        if (source / name).is_file():
            assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "out").iterdir() if f.is_file()}
    assert set(modes.values()) == {0o644}


def test_a_tokenizer_that_was_changed_is_written_anew(toy_model: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(toy_model)
    tokenizer.chat_template = "another {{ messages[0].content }}"
    save_model(model, tokenizer, tmp_path / "out")
    assert load_model(str(tmp_path / "out"))[1].chat_template == tokenizer.chat_template


def test_weights_that_take_no_gradient_are_counted(model: Any) -> None:
    assert trains(model).share == 1
    model.lm_head.weight.requires_grad_(False)
    part = trains(model)
    assert part.fixed == ("lm_head.weight",)
    assert part.share == pytest.approx(1 - model.lm_head.weight.numel() / sum(p.numel() for p in model.parameters()))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            packed = torch.zeros(module.weight.shape, dtype=torch.int32)
            del module.weight
            module.register_buffer("qweight", packed)
    assert trains(model).share < 0.5
    assert any("qweight" in name for name in trains(model).fixed)
