"""MMD: published readings, its floor, and its gradient against broadcasting."""

import pytest
import torch

from titer.defences.parts.mmd import floor, mmd


def reading(batch, make, dim=4096, draws=20):
    torch.manual_seed(0)
    shape = (batch, dim)
    return sum(mmd(make(shape), torch.randn(shape, dtype=torch.float64)).item() for _ in range(draws)) / draws


def gaussian(scale):
    return lambda shape: scale * torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("batch", "scale", "value"),
    [
        (4, 1, 1.54),
        (8, 1, 0.78),
        (4, 0, 3.28),
        (8, 0, 2.80),
        (4, 0.1, 3.18),
        (8, 0.1, 2.68),
        (4, 3, 2.46),
        (8, 3, 1.84),
    ],
)
def test_known_readings(batch, scale, value):
    assert reading(batch, gaussian(scale)) == pytest.approx(value, abs=0.07)


@pytest.mark.parametrize("batch", [2, 4, 8, 32])
def test_floor_is_what_equal_gaussians_read(batch):
    assert reading(batch, gaussian(1.0)) == pytest.approx(floor(batch), rel=0.03)


def test_unbiased_reads_zero_for_equal_gaussians():
    torch.manual_seed(0)
    values = [mmd(torch.randn(6, 512), torch.randn(6, 512), unbiased=True).item() for _ in range(50)]
    assert abs(sum(values) / 50) < 0.01 and floor(6, unbiased=True) == 0


def test_collapsed_rows_are_finite_with_a_gradient():
    a = torch.zeros(4, 64, requires_grad=True)
    value = mmd(a, torch.zeros(4, 64))
    value.backward()
    assert value.item() == 0 and bool(torch.isfinite(a.grad).all())


def test_bf16_input_is_measured_in_fp32():
    torch.manual_seed(0)
    a, g = torch.randn(4, 4096), torch.randn(4, 4096)
    rough = mmd(a.bfloat16(), g.bfloat16())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(mmd(a, g).item(), rel=1e-3)
