"""Small videos of texture for tests that compare pixels, and what cutting and turning makes of them."""
from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

NUM_FRAMES = 40
GOP = {"g": "10", "bf": "3", "sc_threshold": "0"}
UNIT = 1 << 16  # of a display matrix


def texture(index: int, width: int, height: int) -> np.ndarray:
    """A frame of 8 px tiles that move a tile to the right each frame: no two frames are alike."""
    tiles = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 41, 3), dtype=np.uint8)
    return np.kron(np.roll(tiles, index, axis=1), np.ones((8, 8, 1), np.uint8))[:height, :width].copy()


def write(
    path: Path,
    codec: str,
    options: dict[str, str] | None = None,
    *,
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    frames: Iterable[np.ndarray] | None = None,
) -> Path:
    """Writes `frames` (NUM_FRAMES of `texture`), frame i at times[i] / 25 s (i / 25 s)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        for index, image in enumerate(frames or (texture(index, *size) for index in range(NUM_FRAMES))):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (times[index] if times else index), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy(source: Path, target: Path, first: int = 0, **options: Any) -> Path:
    """Writes the packets of ``source`` from number ``first`` on, as they are, to another file."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=options) as result:
        stream = result.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size and number >= first:
                packet.stream = stream
                result.mux(packet)
    return target


def turned(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes an mp4 again with another display matrix (a, b, c, d)."""
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (UNIT * value for value in matrix)
    assert struct.unpack_from(">9i", data, place)[:5] == (UNIT, 0, 0, 0, UNIT)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def uneven() -> list[int]:
    return np.random.default_rng(0).integers(1, 9, NUM_FRAMES).cumsum().tolist()


def open_gop(path: Path) -> Path:
    return write(path, "libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"})
