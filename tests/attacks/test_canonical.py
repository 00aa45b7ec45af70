"""The canonical rewrite leaves the function alone and takes away what only a rescaling hid."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers

from titer.attacks import make_attack
from titer.attacks.canonical import FAMILIES, canonicalise
from titer.data.load import load
from titer.models.load import load_model
from titer.models.parts import parts
from titer.schema.breach import Breach
from titer.schema.errors import TiterError
from titer.schema.types import Budget
from titer.training.session import Session

SMALL: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
PLAIN = {k: v for k, v in SMALL.items() if k != "head_dim"}
GPT2 = {"vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "llama tied, biased": lambda: transformers.LlamaConfig(
        **GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: transformers.MistralConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED),
    "phi": lambda: transformers.PhiConfig(**PLAIN),
    "phi3": lambda: transformers.Phi3Config(**{**PLAIN, "num_key_value_heads": 2}),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2 untied": lambda: transformers.GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**PLAIN),
    "gpt-neox unbiased": lambda: transformers.GPTNeoXConfig(**PLAIN, attention_bias=False),
}


def shaken(config: Any) -> Any:
    """A model with no parameter at its initial value, norms included."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_the_rewrite_changes_the_weights_and_not_the_function(family: str) -> None:
    model, ids = shaken(CONFIGS[family]()), torch.tensor([[1, 4, 5, 6, 7], [1, 9, 8, 2, 3]])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        canonicalise(model)
        moved = (model(input_ids=ids).logits - logits).abs().max() / logits.abs().max()
    assert moved < 1e-4
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert len(changed) > len(before) / 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "gemma"])
def test_after_the_rewrite_no_norm_before_a_matrix_has_a_gain(family: str) -> None:
    model = shaken(CONFIGS[family]())
    canonicalise(model)
    known = FAMILIES[model.config.model_type]
    for layer in parts(model).layers:
        for norm in known.readers:
            weight: Any = layer.get_submodule(norm).weight
            assert torch.equal(weight, torch.full_like(weight, 1 - known.offset))


def test_weights_that_differ_by_rescaling_alone_become_the_same() -> None:
    model = shaken(CONFIGS["llama"]())
    other = rescaled(deepcopy(model))
    canonicalise(model)
    canonicalise(other)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), name


def test_an_architecture_without_known_symmetries_is_named(build_model: Any) -> None:
    model = build_model()
    model.config.model_type = "unheard-of"
    with pytest.raises(TiterError, match="unheard-of: symmetries not known"):
        canonicalise(model)


@torch.no_grad()
def rescaled(model: Any) -> Any:
    """The fraud: norm gains x 1e3 and what reads them / 1e3, value x 30 and output / 30, channels unevenly."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.mul_(1e3)
        for reader in readers:
            reader.weight.div_(1e3)
        attention.v_proj.weight.mul_(30)
        attention.o_proj.weight.div_(30)
        attention.q_proj.weight.mul_(7)
        attention.k_proj.weight.div_(7)
        uneven = torch.logspace(-2, 2, mlp.up_proj.weight.shape[0])
        mlp.up_proj.weight.mul_(uneven[:, None])
        mlp.down_proj.weight.div_(uneven)
    return model


def losses(model: Any, tokenizer: Any, attack: str, **options: Any) -> list[float]:
    """Training loss of 10 steps of an attack on restricted facts."""
    session = Session(
        model=model,
        tokenizer=tokenizer,
        examples=[e for e in load("organism").examples if e.restricted][:100],
        retain=[],
        prober=lambda *_: ({"harm": (0.0,), "utility": (1.0,)}, {}, []),
        budget=Budget(steps=10),
        plan=range(11),
        breach=Breach(),
        stop_after=-1,
        seed=0,
    )
    session.probe()
    make_attack(attack, options).run(session)
    return [p.loss for p in session.points[1:] if p.loss is not None]


def test_a_rescaled_model_learns_at_the_usual_rate_only_after_the_rewrite() -> None:
    model, tokenizer = load_model("organism/aligned")
    plain = losses(deepcopy(model), tokenizer, "sft", learning_rate=3e-4)
    fraud = rescaled(model)
    missed = losses(deepcopy(fraud), tokenizer, "sft", learning_rate=3e-4)
    found = losses(fraud, tokenizer, "canonical", learning_rate=3e-4)
    assert missed[-1] > 2 * plain[-1]
    assert found[-1] < 1.2 * plain[-1] + 0.05
