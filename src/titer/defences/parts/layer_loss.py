"""Cross-entropy of the output head on every layer's hidden states, without ever holding their logits.

The rows of all layers pass through the head chunk by chunk; each chunk's softmax is turned in place into its gradient,
and one gradient of the head grows across all of them. Needs about (chunk + head) instead of (layers x tokens x vocab).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from titer.models.parts import unwrap
from titer.schema.errors import TiterError
from titer.training.gradients import wide
from titer.training.meter import charge

CHUNK_ELEMENTS = 2**24


def head_cross_entropy(model: nn.Module, head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor) -> Any:
    """`sum_i weights[i] * CE(head(hidden[i]), targets[i])` with its gradient, and the CE of every row without one.

    `hidden` (M, d), `targets` (M,) int64, `weights` (M,). A frozen head (LoRA) takes no gradient and costs none; a
    soft cap on the logits (Gemma) is applied. Sums in fp32 or wider.
    """
    if type(head) is not nn.Linear:
        raise TiterError(f"head {type(head).__name__}: must be a plain Linear: leave the head out of the adapter")
    config = unwrap(model).config.get_text_config()
    cap = config.to_dict().get("final_logit_softcapping")
    products = 1 + hidden.requires_grad + head.weight.requires_grad if torch.is_grad_enabled() else 1
    charge(2.0 * len(hidden) * head.weight.numel() * products)
    return _HeadCrossEntropy.apply(hidden, head.weight, head.bias, targets, weights, cap)  # type: ignore[no-untyped-call]


class _HeadCrossEntropy(torch.autograd.Function):
    """The gradient is made on the way forward and only scaled on the way back; a second backward pass is an error."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = wide(weight.dtype)
        grad_hidden = _zeros(hidden, dtype, ctx.needs_input_grad[0])
        grad_weight = _zeros(weight, dtype, ctx.needs_input_grad[1])
        grad_bias = _zeros(bias, dtype, ctx.needs_input_grad[2])
        losses = hidden.new_empty(len(hidden), dtype=dtype)
        rows = max(1, CHUNK_ELEMENTS // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                h = hidden[part].to(weight.dtype)
                losses[part], slope = _softmax_slope(h, weight, bias, targets[part], weights[part].to(dtype), cap)
                narrow = slope.to(weight.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = narrow @ weight
                if grad_weight is not None:
                    _add_product(grad_weight, narrow, h)
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the layer-wise loss can be differentiated only once")
        (hidden, weight, bias), ctx.grads = ctx.grads, None
        hidden_dtype, weight_dtype = ctx.dtypes
        grads = (_scaled(hidden, scale, hidden_dtype), _scaled(weight, scale, weight_dtype))
        return *grads, _scaled(bias, scale, weight_dtype), None, None, None


def _zeros(like: Tensor | None, dtype: torch.dtype, wanted: bool) -> Tensor | None:
    return torch.zeros_like(like, dtype=dtype) if like is not None and wanted else None


def _softmax_slope(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """CE of each row (n,) and its weighted gradient with respect to the logits (n, V), made in their own memory."""
    logits = nn.functional.linear(hidden, weight, bias).to(weights.dtype)
    slope_of_cap = None
    if cap is not None:
        logits = torch.tanh(logits / cap)
        slope_of_cap = 1 - logits.square()
        logits = logits * cap
    index = targets[:, None]
    log_total = torch.logsumexp(logits, 1, keepdim=True)
    losses = (log_total - logits.gather(1, index)).squeeze(1)
    slope = logits.sub_(log_total).exp_()
    slope.scatter_add_(1, index, torch.full_like(log_total, -1))
    slope.mul_(weights[:, None])
    return losses, slope if slope_of_cap is None else slope.mul_(slope_of_cap)


def _add_product(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, hidden)
    else:
        total += slope.T @ hidden


def _scaled(grad: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    return None if grad is None else grad.mul_(scale).to(dtype)
