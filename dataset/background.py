"""Backgrounds of other videos in a batch, so that the scene alone does not tell which views are of one video.

After FAME (Ding et al., "Motion-aware contrastive video representation learning via foreground-background merging", CVPR
2022, section 3.2), without its color statistics, which refine the foreground. There every clip gets its own background;
here all views of a video get that of one donor, so that clips and overview still show one scene.

Shapes: B videos, V + 1 views of T frames, S = `img_dim`; clips are uint8 [B, V + 1, T, S, S, 3].
"""
from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

FOREGROUND_SHARE = 0.3  # of the pixels, beta in FAME: less keeps less of the scene beside what moves
BLUR = 1 / 30           # standard deviation of the Gaussian blur, in units of S


def swap_backgrounds(clips: Tensor, draws: Sequence[float | None]) -> Tensor:
    """Returns clips in which each video with a draw has the background of its donor, the same view and frame of it.

    A draw is uniform in [0, 1) and chooses the donor among the other videos, each equally likely; None: no swap. Donors
    are taken as they are in `clips`, before any swap.
    """
    out, num = clips.clone(), len(clips)
    for video, draw in enumerate(draws):  # one at a time, to bound the memory
        if draw is not None:
            donor = (video + 1 + int(draw * (num - 1))) % num
            mask = foreground_mask(clips[video], FOREGROUND_SHARE)
            rows = mask[:, None, :, :, None].expand(*mask[:, None].shape, 3).flatten(-2)  # as loops over 3 values are slow
            out[video] = torch.where(rows, clips[video].flatten(-2), clips[donor].flatten(-2)).view_as(out[video])
    return out


def foreground_mask(clips: Tensor, share: float) -> Tensor:
    """Returns bool [..., S, S]: the share of pixels with the largest blurred motion, from uint8 clips [..., T, S, S, 3].

    Motion is the absolute difference of consecutive frames, its sum over channels and mean over time. The share is
    exact: of pixels with the same motion, as in a static view, the first ones are taken.
    """
    side = clips.shape[-2]
    motion = clips.float().diff(dim=-4).abs_().mean(dim=-4).sum(dim=-1)
    blur = _blur_matrix(side, clips.device)
    order = (blur @ motion @ blur.T).flatten(-2).argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=clips.device)
    return mask.scatter_(-1, order[..., : round(share * side**2)], True).unflatten(-1, (side, side))


@functools.cache
def _blur_matrix(side: int, device: torch.device) -> Tensor:
    """Returns [S, S], the Gaussian blur of a column; at the borders the weights of what is inside sum to 1."""
    distance = torch.arange(side) - torch.arange(side)[:, None]
    return torch.softmax(-(distance / (BLUR * side)) ** 2 / 2, dim=-1).to(device)
