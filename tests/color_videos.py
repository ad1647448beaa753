"""Videos of one color with a little noise: what a network sees of them is their class."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def write_color_video(folder: Path, num_frames: int, color: Sequence[int], rng: np.random.Generator) -> None:
    """Makes a folder of frames, 64x48 px, of an RGB color."""
    folder.mkdir()
    for index in range(1, num_frames + 1):
        frame = (np.array(color) + rng.integers(-15, 16, (48, 64, 3))).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"image_{index:05d}.jpg"), frame[..., ::-1])
