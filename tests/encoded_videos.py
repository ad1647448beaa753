"""Small encoded videos for tests, whose frame i shows i as eight stripes (see conftest.py)."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "libx264", ".avi": "mpeg4", ".webm": "libvpx",
          ".mpg": "mpeg1video"}


def coded_frame(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """uint8 RGB [H, W, 3] with a stripe for each bit of the number, lowest first, white for 1."""
    width, height = size
    bits = np.array([index >> bit & 1 for bit in range(8)], dtype=np.uint8) * 255
    return np.tile(np.repeat(bits, width // 8)[None, :, None], (height, 1, 3))


def encode_video(path: Path, num_frames: int, *, fps: int = 25, size: tuple[int, int] = (64, 48),
                 times: list[float] | None = None, options: dict[str, str] | None = None,
                 container_options: dict[str, str] | None = None) -> Path:
    """The path, after a video is written there; h264 has B-frames, avi holds Xvid's codec with its tag.

    `times` in s, ascending, gives each frame's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = CODECS[path.suffix.lower()]
    defaults: dict[str, Any] = {"bf": "2"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={**defaults, **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if path.suffix.lower() == ".avi":
            stream.codec_context.codec_tag = "XVID"
        unit = Fraction(1, 1000) if times else Fraction(1, fps)
        stream.codec_context.time_base = unit
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(coded_frame(index, size), format="rgb24")
            frame.pts = round(times[index] * 1000) if times else index
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def zero_half(data: bytes) -> bytes:
    """An mp4 file of which the second half of the frames is zeros, as in a partial download; its index is whole."""
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    middle = (start + end) // 2
    return data[:middle] + bytes(end - middle) + data[end:]
