"""Frames with the smoothness and the range of photos, and how far two results are apart."""
from __future__ import annotations

import cv2
import numpy as np


def photo_like(num: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colored shapes with some noise, over the full range of levels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 7, 9, 3)).astype(np.float32)
    smooth = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in coarse])
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def difference(ours: np.ndarray, theirs: object) -> np.ndarray:
    """Returns the absolute differences of levels of two images."""
    return np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))
