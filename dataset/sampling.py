"""Frame indices of clips: pure functions of frame counts and an explicit random generator.

Shapes: V clips of T frames each, n frames in the video. Indices are int64 and count from 0. A video that is too short
repeats its last frame.
"""
from __future__ import annotations

import numpy as np

NATURAL = "natural"
CLIP_ORDERS = (NATURAL, "reversed", "shuffled", "frozen")


def pretraining_indices(num_frames: int, num_clips: int, clip_frames: int, max_stride: float,
                        rng: np.random.Generator) -> np.ndarray:
    """Returns [V*T]: the frame indices of one pretraining sample, non-decreasing, in [0, n - 1].

    Stride s ~ U(1, min(max_stride, n / (V*T))), start a ~ UniformInt[0, floor(n - s*V*T)], index k = round(a + s*k),
    clamped to n - 1. Needs n >= V*T and max_stride >= 1.
    """
    total = num_clips * clip_frames
    assert num_frames >= total and max_stride >= 1, (num_frames, total, max_stride)
    stride = rng.uniform(1.0, min(max_stride, num_frames / total))
    last_start = max(0, int(np.floor(num_frames - stride * total)))
    start = rng.integers(0, last_start, endpoint=True)
    indices = np.rint(start + stride * np.arange(total)).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def split_views(indices: np.ndarray, num_clips: int) -> np.ndarray:
    """Returns [V + 1, T] from `indices` [V*T]: the V clips in temporal order, then the overview.

    Clip v is the v-th run of T indices; the overview is every V-th index, so that its T frames span all clips.
    """
    return np.concatenate([indices.reshape(num_clips, -1), indices[None, ::num_clips]])


def training_clip(num_frames: int, clip_frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [T]: one clip at a fixed integer stride, with a uniform start among those that fit."""
    start = rng.integers(0, _last_start(num_frames, clip_frames, stride), endpoint=True)
    return _clips_at(np.array([start]), num_frames, clip_frames, stride)[0]


def uniform_clips(num_frames: int, clip_frames: int, stride: int, num_clips: int) -> np.ndarray:
    """Returns [num_clips, T]: clips with evenly spaced starts over the whole video; a single one from the middle."""
    last_start = _last_start(num_frames, clip_frames, stride)
    fractions = np.linspace(0, 1, num_clips) if num_clips > 1 else np.array([0.5])
    return _clips_at(np.rint(fractions * last_start).astype(np.int64), num_frames, clip_frames, stride)


def window_clips(num_frames: int, clip_frames: int, stride: int) -> np.ndarray:
    """Returns [windows, T]: windows of T*stride frames, half a window apart; the last one ends with the video."""
    last_start = _last_start(num_frames, clip_frames, stride)
    starts = np.arange(0, last_start, max(1, clip_frames * stride // 2))
    return _clips_at(np.append(starts, last_start), num_frames, clip_frames, stride)


def order_frames(clips: np.ndarray, order: str, rng: np.random.Generator) -> np.ndarray:
    """Returns clips [V, T] with their frames in one of `CLIP_ORDERS`: "reversed"; "shuffled" by a permutation drawn for each
    clip; "frozen", the middle frame T times. Results on these show how much of a model's accuracy rests on motion."""
    if order == "reversed":
        return clips[:, ::-1]
    if order == "shuffled":
        return rng.permuted(clips, axis=1)
    return np.repeat(clips[:, [(clips.shape[1] - 1) // 2]], clips.shape[1], axis=1) if order == "frozen" else clips


def _last_start(num_frames: int, clip_frames: int, stride: int) -> int:
    """Returns the last start at which a clip fits into the video, 0 if none does."""
    return max(0, num_frames - (clip_frames - 1) * stride - 1)


def _clips_at(starts: np.ndarray, num_frames: int, clip_frames: int, stride: int) -> np.ndarray:
    return np.minimum(starts[:, None] + stride * np.arange(clip_frames), num_frames - 1).astype(np.int64)
