"""Tiny models and pairs for the defence tests, and what the float64 references share; spawned processes import it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

from titer.schema.types import Batch, Pair

VOCAB = 31
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD_DIM = {**SHAPE, "head_dim": 8}
LAYER_TYPES = ["sliding_attention", "full_attention", "full_attention"]
FULL_HEADS = {**SHAPE, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "llama-tied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**HEAD_DIM),
    "mistral": lambda: transformers.MistralConfig(**SHAPE),
    "gemma2": lambda: transformers.Gemma2Config(**HEAD_DIM, layer_types=LAYER_TYPES, final_logit_softcapping=0.5),
    "gemma3": lambda: transformers.Gemma3TextConfig(**HEAD_DIM, layer_types=LAYER_TYPES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}),
    "phi": lambda: transformers.PhiConfig(**FULL_HEADS),
}


def build(family: str = "llama", dtype: torch.dtype = torch.float64, lora: bool = False) -> nn.Module:
    """A random model of a family with weights large enough that no gradient is lost in rounding."""
    return copy.deepcopy(_built(family, dtype, lora))


@functools.cache
def _built(family: str, dtype: torch.dtype, lora: bool) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    if lora:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype).eval()


def batch(prompts: list[list[int]], answers: list[list[int]], pad: int = 0, width: int = 0) -> Batch:
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    width = max(width, *(len(r) for r in rows))
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    labels = torch.tensor(
        [[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in zip(prompts, answers, strict=True)]
    )
    return Batch(ids, mask, labels)


PROMPTS = [[1, 5, 6, 7], [1, 8, 9], [1, 4, 4, 10], [1, 11, 12, 3, 13]]
HARMFUL = [[20, 21, 22, 2], [23, 24, 25, 26, 27, 2], [28, 0, 29, 2], [20, 14, 2]]
REFUSAL = [[15, 16, 2], [15, 24, 17, 2], [15, 16, 18, 2], [15, 14, 19, 16, 2]]


def make_pair(pad: int = 0, width: int = 0, step: int = 3, steps: int = 10) -> Pair:
    """Four prompts; answers hold id 0, coincide in places, and differ in length on both sides."""
    retain = batch([[1, 3, 5], [1, 6, 6, 3]], [[9, 8, 2], [7, 2]], pad)
    extra = tuple(batch(PROMPTS[i:] + PROMPTS[:i], HARMFUL[i:] + HARMFUL[:i], pad) for i in (1, 2, 3))
    return Pair(
        harmless=batch(PROMPTS, REFUSAL, pad, width),
        harmful=batch(PROMPTS, HARMFUL, pad, width),
        retain=retain,
        extra=extra,
        step=step,
        steps=steps,
        seed=7,
        held_out=batch(PROMPTS[::-1], HARMFUL[::-1], pad),
    )


def grads_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def relative_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    gap = sum(float((a[n] - b[n]).square().sum()) for n in b)
    size = sum(float(b[n].square().sum()) for n in b)
    assert size > 0, "the reference gradient is zero: the comparison would say nothing"
    return (gap / size) ** 0.5


class Toolbox:
    """What the tests of a defence use: builders, and the comparison of a step with a reference objective."""

    build = staticmethod(build)
    batch = staticmethod(batch)
    pair = staticmethod(make_pair)
    families = tuple(CONFIGS)

    @staticmethod
    def ce(model: nn.Module, b: Batch) -> Tensor:
        """Reference response CE: all logits, shifted by one, in one line of plain torch."""
        logits = model(input_ids=b.input_ids, attention_mask=b.attention_mask).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), b.labels[:, 1:].flatten(), ignore_index=-100)

    @staticmethod
    def params(model: nn.Module) -> dict[str, Tensor]:
        return {n: p for n, p in model.named_parameters() if p.requires_grad}

    @staticmethod
    def ce_at(model: nn.Module, params: dict[str, Tensor], b: Batch) -> Tensor:
        """Reference response CE at other weights."""
        inputs = {"input_ids": b.input_ids, "attention_mask": b.attention_mask}
        logits = torch.func.functional_call(model, params, (), inputs).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), b.labels[:, 1:].flatten(), ignore_index=-100)

    @staticmethod
    def hidden(model: nn.Module, b: Batch) -> list[Tensor]:
        """Output of every decoder layer of a Llama, full (B, T, d)."""
        lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        seen: list[Tensor] = []
        hooks = [x.register_forward_hook(lambda m, a, o: seen.append(o)) for x in lm.model.layers]
        model(input_ids=b.input_ids, attention_mask=b.attention_mask)
        for h in hooks:
            h.remove()
        return seen

    @staticmethod
    def reference(lora: bool = False) -> nn.Module:
        """A frozen model with other weights than the one under test, so that distances to it are not zero."""
        other = build()
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(0.9).add_(0.01)
        return other.requires_grad_(False)

    @staticmethod
    def step(defence: object, model: nn.Module, pair: Pair) -> tuple[dict[str, float], dict[str, Tensor]]:
        model.zero_grad()
        terms = defence.backward(model, pair)  # type: ignore[attr-defined]
        grads = {n: g.clone() for n, g in grads_of(model).items()}
        model.zero_grad()
        return terms, grads

    @staticmethod
    def grad(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        params = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        return dict(zip(names, found, strict=True))

    gap = staticmethod(relative_gap)
