"""Multi-kernel maximum mean discrepancy between two sets of rows, and what its estimator reads when they are equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from titer.training.gradients import wide

KERNELS = 5
FACTOR = 2.0


def mmd(a: Tensor, b: Tensor, *, unbiased: bool = False) -> Tensor:
    """MMD^2 between the rows of `a` and `b`, both (B, D), as a scalar of at least fp32.

    Five Gaussian kernels whose widths double, centred on the mean squared distance between distinct rows of both sets
    together; the bandwidth carries no gradient. Biased V-statistic by default, as in RepNoise (2405.14577); `unbiased`
    leaves the diagonals out and needs B >= 2.
    """
    n = len(a)
    squared = _squared_distances(torch.cat([a, b]))
    mean = squared.detach().sum() / (4 * n * n - 2 * n)
    bandwidth = (mean / FACTOR ** (KERNELS // 2)).clamp_min(torch.finfo(squared.dtype).tiny)
    kernel = torch.stack([torch.exp(-squared / (bandwidth * FACTOR**i)) for i in range(KERNELS)]).sum(0)
    cross = 2 * kernel[:n, n:].mean()
    if unbiased:
        within = kernel[:n, :n].sum() + kernel[n:, n:].sum() - 2 * n * KERNELS
        return within / (n * (n - 1)) - cross
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - cross


def floor(batch: int, *, unbiased: bool = False) -> float:
    """What `mmd` reads when both sets are the same high-dimensional Gaussian: 6.19 / B, or 0 for the unbiased one.

    All distinct rows are then equally far apart, so the kernel off the diagonal is one number and only the diagonals
    (5 each) differ: 2 (5 - k) / B with k = sum_i exp(-4 / 2^i).
    """
    if unbiased:
        return 0.0
    off_diagonal = sum(math.exp(-(FACTOR ** (KERNELS // 2)) / FACTOR**i) for i in range(KERNELS))
    return 2 * (KERNELS - off_diagonal) / batch


def _squared_distances(rows: Tensor) -> Tensor:
    """Pairwise squared distances (N, N) in fp32 or wider, exactly 0 on the diagonal, by one matrix product.

    Rounding is about 1e-7 of the squared norms, which the bandwidth (never smaller than they are) divides by.
    """
    rows = rows.to(wide(rows.dtype))
    gram = rows @ rows.T
    square = gram.diagonal()
    distances = (square[:, None] + square[None, :] - 2 * gram).clamp_min(0)
    return distances * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
