"""Numerics of reduced precision and of recomputed activations.

Shapes: M clips, C channels, t timestamps, h and w positions of a feature map.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` in float32 if its precision is lower, unchanged if it is float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SafeConv3d(nn.Conv3d):
    """nn.Conv3d with the same sums in other kernels, where a device's own are wrong or slow.

    Correct gradients under CPU autocast to bfloat16: where a feature map is no longer than the kernel in a padded dimension,
    some bfloat16 CPU kernels return wrong weight gradients, NaN among them, or corrupt memory, while output and loss look
    normal (torch 2.14.1 on AVX-512; 3x3x3 over 2 timestamps, as in the last stage for 16 frames). There the map is padded
    explicitly before a convolution without padding.

    Speed on GPUs: in bfloat16 a stem of 3 channels and 7x7 pixels with stride 2 falls back on a kernel without tensor cores
    (half of the time of r3d18: docs/performance.md). There it is computed by `folded`.
    """

    @classmethod
    def replace_in(cls, module: nn.Module) -> None:
        """Turns every nn.Conv3d in `module` into a SafeConv3d; parameters and names stay."""
        for child in module.modules():
            if isinstance(child, nn.Conv3d):
                child.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution [M, C', t', h', w'] of x [M, C, t, h, w]."""
        written = [padding if size <= kernel else 0
                   for padding, size, kernel in zip(self.padding, x.shape[2:], self.kernel_size)]
        if any(written) and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            t, h, w = written
            left = [padding - zeros for padding, zeros in zip(self.padding, written)]
            return F.conv3d(F.pad(x, (w, w, h, h, t, t)), self.weight, self.bias, self.stride, left, self.dilation,
                            self.groups)
        if (x.is_cuda and torch.is_autocast_enabled("cuda") and self.in_channels == 3 and self.kernel_size[1:] == (7, 7)
                and self.padding[1:] == (3, 3) and self.stride == (1, 2, 2) and x.shape[3] % 2 == x.shape[4] % 2 == 0):
            return self.folded(x, torch.get_autocast_dtype("cuda"))
        return super().forward(x)

    def folded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the convolution in `dtype` as one of stride 1 over blocks of 2x2 pixels as channels (space to depth).

        For a kernel of 7x7 pixels, padding 3 and stride 2: after a row and a column of zeros it covers 4x4 blocks.
        """
        m, c, t, h, w = x.shape
        last = self.weight.is_contiguous(memory_format=torch.channels_last_3d)
        blocks = torch.empty(m, 4 * c, t, h // 2 + 3, w // 2 + 3, dtype=dtype, device=x.device,
                             memory_format=torch.channels_last_3d if last else torch.contiguous_format).zero_()
        pixels = x.unflatten(4, (w // 2, 2)).unflatten(3, (h // 2, 2))           # [M, 3, T, H/2, 2, W/2, 2]
        blocks[..., 2:-1, 2:-1].unflatten(1, (2, 2, c)).copy_(pixels.permute(0, 4, 6, 1, 2, 3, 5))
        kernel = F.pad(self.weight, (1, 0, 1, 0)).unflatten(4, (4, 2)).unflatten(3, (4, 2))
        kernel = kernel.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)               # [C', 4 * 3, kernel's T, 4, 4]
        return F.conv3d(blocks, kernel, self.bias, padding=(self.padding[0], 0, 0))


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, recompute: bool) -> Tensor:
    """Returns the output of `blocks` in sequence; with `recompute` their activations are recomputed in the backward pass.

    The blocks must not draw random numbers.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False,
                           context_fn=lambda block=block: (nullcontext(), same_buffers(block)))
        else:
            x = block(x)
    return x


@contextmanager
def same_buffers(module: nn.Module) -> Iterator[None]:
    """Restores the buffers on exit: a recomputation must not update running statistics a second time."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:  # the recomputation stops by an exception once it has what the backward pass needs
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before):
                buffer.copy_(value)
