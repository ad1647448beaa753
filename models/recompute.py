"""Activation checkpointing: what a block computed is forgotten, and computed anew in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost". Losses, gradients and statistics stay the same.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, recompute: bool) -> Tensor:
    """`x` through one block after the other; with `recompute` only what goes in and out of each is kept.

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
    """Leaves the buffers as they were: a second forward pass must not enter the running statistics again."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:  # the second pass ends by an exception as soon as it has what the backward needs
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before):
                buffer.copy_(value)
