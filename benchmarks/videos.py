"""The videos that benchmarks read: a texture that drifts behind another one, as hard to decode as photos."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

VIDEO_SIZE = 340, 256  # (width, height)


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Returns random levels [height, width, 3] with the spectrum and saturation of photos."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    frequency[0, 0] = np.inf  # no mean
    fields = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**1.5, (height, width))
              for _ in range(4)]
    gray, *colors = (field / field.std() for field in fields)
    return 128 + 40 * np.stack([0.85 * gray + 0.5 * color for color in colors], axis=-1)


def video_frames(num_frames: int, size: tuple[int, int] = VIDEO_SIZE) -> Iterator[np.ndarray]:
    """Yields frames, uint8 RGB [H, W, 3], of a video of VIDEO_SIZE resized to `size`."""
    (width, height), rng = VIDEO_SIZE, np.random.default_rng(0)
    scene, veil = texture(rng, width + 64, height + 64), texture(rng, width, height)
    for index in range(num_frames):
        right, down = (int(32 + 32 * np.sin(index / period)) for period in (23, 31))
        levels = 0.7 * scene[down:down + height, right:right + width] + 0.3 * veil
        image = Image.fromarray(np.clip(128 + 1.3 * (levels - 128), 0, 255).astype(np.uint8))
        yield np.array(image.resize(size, Image.Resampling.BICUBIC))


def write_frame_folder(folder: Path, frames: Iterable[np.ndarray]) -> str:
    """Writes frames as JPEGs of quality 90; returns the folder's path."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / f"image_{index:05d}.jpg", quality=90)
    return str(folder)
