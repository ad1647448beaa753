"""Time reversal and motion excitation, the latter against a loop over frames."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.motion import MotionExcitation, reverse_time


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_reversal_puts_natural_rows_first():
    maps = torch.arange(24.0).view(3, 2, 4, 1, 1)
    both = reverse_time(maps)
    assert both.shape == (6, 2, 4, 1, 1)
    assert torch.equal(both[:3], maps)
    for tau in range(4):
        assert torch.equal(both[3:, :, tau], maps[:, :, 3 - tau])


def norm(x: torch.Tensor, layer: torch.nn.BatchNorm2d) -> torch.Tensor:
    """Batch norm by training statistics of x [rows, C, ...]."""
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean, var = x.mean(dims), x.var(dims, unbiased=False)
    scaled = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    return scaled * layer.weight.view(shape) + layer.bias.view(shape)


@pytest.mark.parametrize("channels, t", [(32, 4), (48, 3), (16, 2)])
def test_excitation_equals_loops_over_frames(channels, t):
    torch.manual_seed(0)
    excitation = MotionExcitation(channels).double()
    assert excitation.squeeze.out_channels == channels // 16
    for layer in (excitation.squeeze_norm, excitation.expand_norm):
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.normal_(layer.bias)
    m, h, w = 2, 3, 4
    x = randn(m, channels, t, h, w)

    z = torch.einsum("rc,mcthw->mrthw", excitation.squeeze.weight[:, :, 0, 0], x)
    z = norm(z, excitation.squeeze_norm)
    motion = torch.zeros(m, channels // 16, t, dtype=torch.float64)
    for clip in range(m):
        for tau in range(t - 1):
            for r in range(channels // 16):
                padded = F.pad(z[clip, r, tau + 1], (1, 1, 1, 1))
                shifted = sum(excitation.shift.weight[r, 0, i, j] * padded[i:i + h, j:j + w]
                              for i in range(3) for j in range(3))
                motion[clip, r, tau] = (shifted - z[clip, r, tau]).mean()
    gate = norm(torch.einsum("cr,mrt->mct", excitation.expand.weight[:, :, 0, 0], motion), excitation.expand_norm)
    gate = gate.sigmoid() - 0.5
    torch.testing.assert_close(excitation(x), x + gate[..., None, None] * x)


def test_excitation_has_no_convolution_bias():
    assert {name for name, _ in MotionExcitation(32).named_parameters() if name.endswith("bias")} == {
        "squeeze_norm.bias", "expand_norm.bias"}
