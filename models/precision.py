"""Where reduced precision stops."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 where it has less, unchanged where it is float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision_on_cpu(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`module(x)`, computed in float32 under CPU autocast and as it is everywhere else.

    Some CPU kernels return wrong bfloat16 weight gradients for wide convolutions over very few timestamps (seen with
    torch 2.14.1: 3x3x3, 512 channels, 2 timestamps, relative error about 1) while the loss looks healthy. The last
    stage of every backbone is of that kind and costs little, so it stays in float32.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return module(x.float())
    return module(x)
