"""Swapped backgrounds: a moving square on static noise is cut out and lands on the noise of another video."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset.background import FOREGROUND_SHARE, foreground_mask, swap_backgrounds

NUM, VIEWS, FRAMES, SIDE, SQUARE = 5, 3, 8, 48, 20


def planted_clips() -> tuple[Tensor, Tensor]:
    """(clips uint8 [B, V + 1, T, S, S, 3], bool [B, V + 1, S, S]: wherever the square of flickering noise passes)."""
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (NUM, VIEWS, 1, SIDE, SIDE, 3), dtype=np.uint8).repeat(FRAMES, axis=2)
    passed = np.zeros((NUM, VIEWS, SIDE, SIDE), dtype=bool)
    for video, view in np.ndindex(NUM, VIEWS):
        top, left = rng.integers(0, SIDE - SQUARE - FRAMES, 2)
        square = rng.integers(0, 256, (SQUARE, SQUARE, 3), dtype=np.uint8)
        for t in range(FRAMES):
            place = video, view, ..., slice(top, top + SQUARE), slice(left + t, left + t + SQUARE)
            clips[video, view, t, top : top + SQUARE, left + t : left + t + SQUARE] = square
            passed[place] = True
    return torch.from_numpy(clips), torch.from_numpy(passed)


def motion_by_loops(clip: np.ndarray) -> np.ndarray:
    """Blurred motion [S, S] of one clip [T, S, S, 3], pixel by pixel in float64."""
    steps = [np.abs(b.astype(float) - a).sum(axis=-1) for a, b in zip(clip, clip[1:])]
    motion, places = np.mean(steps, axis=0), np.arange(SIDE)
    out = np.zeros((SIDE, SIDE))
    for y, x in np.ndindex(SIDE, SIDE):
        down, right = (np.exp(-((places - place) / (SIDE / 30)) ** 2 / 2) for place in (y, x))
        weights = np.outer(down / down.sum(), right / right.sum())
        out[y, x] = (weights * motion).sum()
    return out


def test_the_mask_covers_what_moves():
    clips, passed = planted_clips()
    share = passed[0, 0].float().mean().item()
    masks = foreground_mask(clips, share)
    assert masks.shape == passed.shape and (masks.sum(dim=(-2, -1)) == passed[0, 0].sum()).all()
    overlap = (masks & passed).sum(dim=(-2, -1)) / (masks | passed).sum(dim=(-2, -1))
    assert overlap.min() > 0.8  # the ends of its way move less
    one = foreground_mask(clips[1, 2], 0.3)
    assert torch.equal(one, foreground_mask(clips, 0.3)[1, 2])
    motion = motion_by_loops(clips[1, 2].numpy())
    assert motion[one.numpy()].min() >= motion[~one.numpy()].max() - 1e-3
    assert foreground_mask(torch.zeros_like(clips), 0.3).float().mean().item() == pytest.approx(0.3, abs=1 / SIDE**2)


def test_a_video_keeps_what_moves_and_gets_the_rest_from_one_donor():
    clips, _ = planted_clips()
    before, masks = clips.clone(), foreground_mask(clips, FOREGROUND_SHARE)
    draws = [0.0, None, 0.3, 0.6, np.nextafter(1, 0)]
    donors = [1, None, 4, 1, 3]  # the draw counts from the next video on, and never reaches the video itself
    out = swap_backgrounds(clips, draws)
    assert torch.equal(clips, before) and out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(out[1], clips[1])
    for video, donor in enumerate(donors):
        if donor is not None:
            for view, t in np.ndindex(VIEWS, FRAMES):
                mask, mixed = masks[video, view], out[video, view, t]
                assert torch.equal(mixed[mask], clips[video, view, t][mask])
                assert torch.equal(mixed[~mask], clips[donor, view, t][~mask])  # as it was before any swap


def test_every_other_video_is_equally_likely_to_be_the_donor():
    num = 4  # videos of one gray level each, without motion
    clips = torch.arange(num, dtype=torch.uint8).view(num, 1, 1, 1, 1, 1).expand(num, 1, 2, 8, 8, 3).contiguous()
    draws = (np.arange(300) + 0.5) / 300
    for video in range(num):
        swapped = (swap_backgrounds(clips, [draw if i == video else None for i in range(num)]) for draw in draws.tolist())
        shown = torch.stack([out[video, 0, 0, -1, -1, 0] for out in swapped])
        assert shown.bincount(minlength=num).tolist() == [100 * (donor != video) for donor in range(num)]
