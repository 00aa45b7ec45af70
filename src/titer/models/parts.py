"""Where a model's layers, norms and head are, over the architecture families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from titer.schema.errors import TiterError


@dataclass(frozen=True)
class Parts:
    """The modules defences and mechanism studies hook: one entry per decoder layer, then the shared ends."""

    layers: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    final_norm: nn.Module
    head: nn.Module
    embedding: nn.Module


# architecture family -> where its layers, MLP, attention and final norm live, relative to the causal LM
FAMILIES: tuple[tuple[str, str, str, str, str], ...] = (
    ("Llama, Qwen2/3, Mistral, Gemma 2/3", "model.layers", "mlp", "self_attn", "model.norm"),
    ("Gemma 3 (with vision)", "model.language_model.layers", "mlp", "self_attn", "model.language_model.norm"),
    ("Phi", "model.layers", "mlp", "self_attn", "model.final_layernorm"),
    ("GPT-2", "transformer.h", "mlp", "attn", "transformer.ln_f"),
    ("GPT-NeoX, Pythia", "gpt_neox.layers", "mlp", "attention", "gpt_neox.final_layer_norm"),
)


def unwrap(model: nn.Module) -> Any:
    """The causal LM under a PEFT adapter, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def parts(model: nn.Module) -> Parts:
    """Decoder layers, MLPs, attentions, final norm, head and embedding of a causal LM, PEFT-wrapped or not.

    Raises `TiterError` naming the families looked for when the architecture is unknown.
    """
    lm = unwrap(model)
    for _, layers_at, mlp, attention, norm in FAMILIES:
        layers, final_norm = _find(lm, layers_at), _find(lm, norm)
        if layers is None or final_norm is None or not _all_have(layers, (mlp, attention)):
            continue
        return Parts(
            layers=tuple(layers),
            mlps=tuple(layer.get_submodule(mlp) for layer in layers),
            attentions=tuple(layer.get_submodule(attention) for layer in layers),
            final_norm=final_norm,
            head=lm.get_output_embeddings(),
            embedding=lm.get_input_embeddings(),
        )
    looked = "; ".join(f"{family}: {layers}.*.{mlp}, {norm}" for family, layers, mlp, _, norm in FAMILIES)
    raise TiterError(
        f"{type(lm).__name__}: unknown architecture, looked for {looked}; add a row to titer.models.parts.FAMILIES"
    )


def _find(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _all_have(layers: Sequence[nn.Module], names: tuple[str, ...]) -> bool:
    return len(layers) > 0 and all(_find(layer, name) is not None for layer in layers for name in names)
