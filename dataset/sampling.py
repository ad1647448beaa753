"""Which frames of a video make a clip. Pure functions of frame counts and of an explicit random generator.

Shapes: V clips of T frames each; ``n`` frames in the video. Frame indices count from 0 and are int64. A video
that is shorter than what is asked of it repeats its last frame.
"""
from __future__ import annotations

import numpy as np


def pretraining_indices(
    num_frames: int, num_clips: int, clip_frames: int, max_stride: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns the V*T frame indices of one pretraining sample, not decreasing, each in [0, n - 1].

    One real stride s ~ U(1, min(max_stride, n / (V*T))) and one start a ~ UniformInt[0, floor(n - s*V*T)] for
    the whole sample; index k is round(a + s*k), clamped to n - 1. Needs n >= V*T and max_stride >= 1.
    """
    total = num_clips * clip_frames
    assert num_frames >= total and max_stride >= 1, (num_frames, total, max_stride)
    stride = rng.uniform(1.0, min(max_stride, num_frames / total))
    last_start = max(0, int(np.floor(num_frames - stride * total)))
    start = rng.integers(0, last_start, endpoint=True)
    indices = np.rint(start + stride * np.arange(total)).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def split_views(indices: np.ndarray, num_clips: int) -> np.ndarray:
    """Returns [V + 1, T]: the V clips in temporal order, then the overview.

    ``indices`` is [V*T]. Clip v is its v-th run of T; the overview is every V-th index from the first on, so
    that it spans all clips with T frames.
    """
    return np.concatenate([indices.reshape(num_clips, -1), indices[None, ::num_clips]])


def training_clip(num_frames: int, clip_frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [T]: one clip at a fixed integer stride, its start uniform over all that fit."""
    start = rng.integers(0, _last_start(num_frames, clip_frames, stride), endpoint=True)
    return _clips_at(np.array([start]), num_frames, clip_frames, stride)[0]


def uniform_clips(num_frames: int, clip_frames: int, stride: int, num_clips: int) -> np.ndarray:
    """Returns [num_clips, T]: clips with evenly spaced starts, from the video's first frame to its last.

    A single clip is taken from the middle. Clips may overlap, and coincide in a short video.
    """
    last_start = _last_start(num_frames, clip_frames, stride)
    fractions = np.linspace(0, 1, num_clips) if num_clips > 1 else np.array([0.5])
    return _clips_at(np.rint(fractions * last_start).astype(np.int64), num_frames, clip_frames, stride)


def window_clips(num_frames: int, clip_frames: int, stride: int) -> np.ndarray:
    """Returns [number of windows, T]: windows over the whole video, each half a window after the one before.

    A window is T*stride frames long. The last one ends with the video, so that the tail is covered.
    """
    last_start = _last_start(num_frames, clip_frames, stride)
    starts = np.arange(0, last_start, max(1, clip_frames * stride // 2))
    return _clips_at(np.append(starts, last_start), num_frames, clip_frames, stride)


def _last_start(num_frames: int, clip_frames: int, stride: int) -> int:
    """Returns the last start at which a clip fits into the video, 0 when none does."""
    return max(0, num_frames - (clip_frames - 1) * stride - 1)


def _clips_at(starts: np.ndarray, num_frames: int, clip_frames: int, stride: int) -> np.ndarray:
    return np.minimum(starts[:, None] + stride * np.arange(clip_frames), num_frames - 1).astype(np.int64)
