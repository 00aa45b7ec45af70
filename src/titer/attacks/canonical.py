"""Canonical weights: the same function in its plainest parameters, so that no rescaling hides it from a learning rate.

Every move is exact but for rounding: norm gains go into the matrices that read the norm, and products of two matrices
are balanced channel by channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from titer.models.parts import parts, unwrap
from titer.schema.errors import TiterError
from titer.schema.space import TRAIN, Options, Space
from titer.schema.specs import TrainArgs
from titer.training.session import Session

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
BEFORE = {"input_layernorm": QKV, "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")}
AROUND = {"input_layernorm": QKV, "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj")}


@dataclass(frozen=True)
class Family:
    """What reads each norm of a decoder layer, and how attention and MLP are laid out.

    `layout`: queries, keys and values in matrices of their own, in one after the other, or in one head by head.
    `linear` holds the MLP's up and down projection where channels pass between them unchanged but for a factor.
    `offset` is what the norm adds to its weight. `rotary` turns channels i and i + d/2 of a head together; `scores`
    says whether queries meet keys without a norm of their own.
    """

    readers: Mapping[str, tuple[str, ...]]
    attention: tuple[str, ...] = QKV
    layout: Literal["apart", "blocks", "by-head"] = "apart"
    output: str = "self_attn.o_proj"
    linear: tuple[str, str] | None = ("mlp.up_proj", "mlp.down_proj")
    offset: float = 0.0
    rotary: bool = True
    scores: bool = True


LLAMA = Family(BEFORE)
FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": Family(BEFORE, scores=False),
    "gemma": Family(BEFORE, offset=1.0),
    "gemma2": Family(AROUND, offset=1.0),
    "gemma3_text": Family(AROUND, offset=1.0, scores=False),
    "phi3": Family(
        {"input_layernorm": ("self_attn.qkv_proj",), "post_attention_layernorm": ("mlp.gate_up_proj",)},
        ("self_attn.qkv_proj",),
        "blocks",
        linear=None,
    ),
    "phi": Family({"input_layernorm": (*QKV, "mlp.fc1")}, output="self_attn.dense", linear=None),
    "gpt2": Family(
        {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
        ("attn.c_attn",),
        "blocks",
        "attn.c_proj",
        linear=None,
        rotary=False,
    ),
    "gpt_neox": Family(
        {
            "input_layernorm": ("attention.query_key_value",),
            "post_attention_layernorm": ("mlp.dense_h_to_4h",),
        },
        ("attention.query_key_value",),
        "by-head",
        "attention.dense",
        linear=None,
    ),
}


@dataclass(frozen=True)
class Canonical:
    """Rewrite the weights without changing what they compute, then fine-tune as `sft` does.

    A defence that only multiplies some matrices and divides others moves the learning rate that works, not the
    function. Gains of norms go into the matrices that read them (the final one too, unless head and embedding are
    tied); value and output, up and down projections, and queries and keys share their scale evenly, channel by
    channel. No step is counted: nothing is learned and the model says what it said. What is left alone, because it
    is not exact: the residual stream's scale (a norm's epsilon sees it), matrices before a norm of their own
    (queries and keys of Qwen3 and Gemma 3), and through an activation (gate projections, MLPs without a gate).
    """

    name: ClassVar[str] = "canonical"
    source: ClassVar[str] = "design: rescaling symmetries of transformers; after path-balancing (1506.02617)"
    space: ClassVar[Space] = TRAIN
    known: ClassVar[tuple[Options, ...]] = (
        {"learning_rate": 3e-4},
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-4, "per_device_train_batch_size": 64},
    )
    train: TrainArgs = TrainArgs(learning_rate=3e-4, max_steps=0)
    test_template: None = None

    def run(self, session: Session) -> None:
        """Rewrite, then fine-tune on the session's examples."""
        session.check_budget()
        canonicalise(session.model)
        session.fine_tune(self.train, session.examples)


@torch.no_grad()
def canonicalise(model: nn.Module) -> None:
    """Fold and balance in place. `TiterError` for an architecture whose symmetries are not listed in `FAMILIES`."""
    lm = unwrap(model)
    config = lm.config.get_text_config()
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise TiterError(
            f"attack canonical: {config.model_type}: symmetries not known, only those of {', '.join(FAMILIES)}: "
            "add a row to titer.attacks.canonical.FAMILIES"
        )
    p = parts(model)
    for layer in p.layers:
        for norm, readers in family.readers.items():
            fold(layer.get_submodule(norm), [layer.get_submodule(r) for r in readers], family.offset)
        balance_heads(layer, family, config)
        if family.linear is not None:
            up, down = (layer.get_submodule(name) for name in family.linear)
            balance([_matrix(up)], [_matrix(down).T], _bias(up))
    if p.head.weight is not p.embedding.weight:
        fold(p.final_norm, [p.head], family.offset)


def fold(norm: nn.Module, readers: list[nn.Module], offset: float) -> None:
    """Move a norm's gain, and its bias where every reader has one, into the matrices that read it.

    A bias that no reader can take stays, and the gain then goes over as one factor, its mean magnitude.
    """
    weight, shift = _tensor(norm, "weight"), _bias(norm)
    gain = weight + offset
    stays = shift is not None and bool(shift.any()) and any(_bias(r) is None for r in readers)
    moved = gain.abs().mean().expand_as(gain) if stays else gain.clone()
    if not bool(moved.isfinite().all()) or (stays and not bool(moved.all())):
        return
    for reader in readers:
        bias = _bias(reader)
        if shift is not None and bias is not None and not stays:
            bias.add_(_matrix(reader) @ shift)
        _matrix(reader).mul_(moved)
    if stays and shift is not None:
        weight.copy_(gain / moved - offset)
        shift.div_(moved)
        return
    weight.fill_(1.0 - offset)
    if shift is not None:
        shift.zero_()


def balance_heads(layer: nn.Module, family: Family, config: Any) -> None:
    """Give value and output projection one norm per channel, and queries and keys one per rotated pair of channels."""
    heads: int = config.num_attention_heads
    groups: int = getattr(config, "num_key_value_heads", None) or heads
    output = _matrix(layer.get_submodule(family.output)).unflatten(1, (groups, heads // groups, -1))
    modules = [layer.get_submodule(name) for name in family.attention]
    query, key, value = _split([_matrix(m) for m in modules], family.layout, heads, groups)
    biases = [b for m in modules if (b := _bias(m)) is not None]
    query_bias, key_bias, value_bias = _split(biases, family.layout, heads, groups) if biases else (None, None, None)
    for g in range(groups):
        bias = None if value_bias is None else value_bias[g, 0]
        balance([value[g, 0]], [output[:, g, i].T for i in range(heads // groups)], bias)
    if not family.scores or getattr(config, "qk_layernorm", False):
        return
    pairing = _pairs(query.shape[2], config) if family.rotary else torch.arange(query.shape[2])
    for g in range(groups):
        scale = evened([key[g, 0]], list(query[g]), pairing)
        _scale(key[g], None if key_bias is None else key_bias[g], scale)
        _scale(query[g], None if query_bias is None else query_bias[g], 1 / scale)


def balance(first: list[Tensor], second: list[Tensor], bias: Tensor | None) -> None:
    """Multiply rows of `first`, and its bias, and divide those of `second`, so that their norms are equal by row."""
    scale = evened(first, second, torch.arange(first[0].shape[0]))
    for matrix in first:
        matrix.mul_(scale[:, None])
    for matrix in second:
        matrix.div_(scale[:, None])
    if bias is not None:
        bias.mul_(scale)


def evened(first: list[Tensor], second: list[Tensor], groups: Tensor) -> Tensor:
    """Factors (n,) for the rows of `first` that make the norms of either side equal over each group of rows.

    Rows of group g, `groups` (n,), get one factor; 1 where either side is zero.
    """
    a, b = (sum(m.double().square().sum(1) for m in side) for side in (first, second))
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    groups = groups.to(a.device)
    size = int(groups.max()) + 1
    sums = [torch.zeros(size, dtype=a.dtype, device=a.device).index_add_(0, groups, s) for s in (a, b)]
    factor = (sums[1] / sums[0]) ** 0.25
    sound = factor.isfinite() & (factor > 0)
    return torch.where(sound, factor, 1.0)[groups].to(first[0].dtype)


def _scale(heads: Tensor, bias: Tensor | None, scale: Tensor) -> None:
    """Scale channels of heads (h, d, in) and their biases (h, d)."""
    heads.mul_(scale[None, :, None])
    if bias is not None:
        bias.mul_(scale)


def _split(
    whole: list[Tensor], layout: Literal["apart", "blocks", "by-head"], heads: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries (groups, heads in each, d, ...), keys and values (groups, 1, d, ...)."""
    if layout == "by-head":
        apart = whole[0].unflatten(0, (heads, 3, -1))
        return apart[:, 0, None], apart[:, 1, None], apart[:, 2, None]
    if layout == "blocks":
        width = whole[0].shape[0] // (heads + 2 * groups)
        query, key, value = whole[0].split([heads * width, groups * width, groups * width])
    else:
        query, key, value = whole
    q = query.unflatten(0, (groups, heads // groups, -1))
    return q, key.unflatten(0, (groups, 1, -1)), value.unflatten(0, (groups, 1, -1))


def _pairs(width: int, config: Any) -> Tensor:
    """Which channels of a head one factor must hold for: those that rotate together, and each that does not."""
    rope = getattr(config, "rope_parameters", None) or {}
    half = (int(width * rope.get("partial_rotary_factor", 1.0)) + 1) // 2
    return torch.cat([torch.arange(half).repeat(2), torch.arange(half, width - half)])


def _tensor(module: nn.Module, name: str) -> Tensor:
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found


def _bias(module: nn.Module) -> Tensor | None:
    return getattr(module, "bias", None)


def _matrix(module: nn.Module) -> Tensor:
    """The weight as (out, in), whichever way the module stores it."""
    weight = _tensor(module, "weight")
    if not weight.is_floating_point():
        raise TiterError("attack canonical: weights in 4 bits cannot be rewritten: load them in full")
    return weight.T if isinstance(module, Conv1D) else weight
