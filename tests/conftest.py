"""Fixtures: videos on disk whose pixels encode the frame number.

A frame is eight vertical stripes, one for each bit of its number (white: 1). JPEG and resizing leave it
readable.
"""
from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.robustness.kill_and_resume import write_videos


@pytest.fixture
def write_coded_video() -> Callable[..., str]:
    """Returns a function that writes a folder of frames, frame i coding i, and returns the folder's path."""

    def write(
        folder: Path,
        num_frames: int,
        pattern: str = "image_{:05d}.jpg",
        first: int = 1,
        size: tuple[int, int] = (64, 48),
    ) -> str:
        folder.mkdir(parents=True)
        width, height = size
        for index in range(num_frames):
            bits = np.array([index >> bit & 1 for bit in range(8)], dtype=np.uint8) * 255
            frame = np.tile(np.repeat(bits, width // 8)[None, :, None], (height, 1, 3))
            assert cv2.imwrite(str(folder / pattern.format(index + first)), frame)
        return str(folder)

    return write


@pytest.fixture
def read_codes() -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from frames [..., H, W, 3] to the frame numbers [...] that they encode."""

    def read(frames: np.ndarray) -> np.ndarray:
        frames = np.asarray(frames)
        height, width = frames.shape[-3:-1]
        columns = ((np.arange(8) + 0.5) * width / 8).astype(int)
        bits = frames[..., height // 2, columns, 0] > 127
        return (bits * 2 ** np.arange(8)).sum(-1)

    return read


@pytest.fixture(scope="session")
def videos_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a csv of eight videos of 40 frames, without labels."""
    return write_videos(tmp_path_factory.mktemp("eight_videos"))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell lets background jobs ignore Ctrl-C, which the processes under test would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
