"""Frames of a video as uint8 RGB arrays ``[n, H, W, 3]``, however the video is kept.

A video is a folder of numbered pictures (``frame_folder.py``), a video file (``video_file.py``), or a folder
of pictures inside a packed shard, ``SHARD.tar/VIDEO`` (``packed.py``). ``read_frames`` takes each alike, and
gives the same pixels for a folder and for the shard that it was packed into.
"""
from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from dataset.frame_folder import read_folder
from dataset.packed import read_packed, split_reference
from dataset.video_file import names_video_file, read_video
from utils.errors import InputError

# OpenCV without its EXIF rotation: extraction wrote the pixels the right way up, and every frame alike.
_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# The same at half the width and height, which libjpeg-turbo's vectorized inverse transform yields directly.
HALF_FLAGS = _READ_FLAGS | cv2.IMREAD_REDUCED_GRAYSCALE_2
HALF_SUFFICES = 5 / 6  # of the wanted width and height

RESIZED_AT_ONCE = 8  # as fast as all at once; more full-size frames of a large video are not held


def read_frames(
    path: str,
    indices: np.ndarray,
    num_frames: int,
    size: tuple[int, int] | None = None,
    shrink: Callable[[np.ndarray], np.ndarray] | None = None,
    half: bool = False,
) -> np.ndarray:
    """Returns the frames at ``indices`` as uint8 RGB ``[n, H, W, 3]``, each distinct one decoded once.

    Args:
        path: the video's frame folder, its file, or its place in a shard.
        indices: [n] frame indices from 0, in any order, repeats allowed.
        num_frames: the number of frames that the video is said to have; only named in errors.
        size: (width, height) to resize to, aspect ratio ignored, antialiased bicubic; None: as stored.
        shrink: instead of ``size``, what to do to frames, [n, H, W, 3] -> [n, h, w, 3], whenever n =
            ``RESIZED_AT_ONCE`` are decoded; for long videos, which as stored would not fit into memory.
        half: decode JPEG pictures at half their width and height where that is at least ``HALF_SUFFICES`` of
            ``size``. Twice as fast; after crop and resize about 1 grey level from frames decoded in full, less than
            what compression at quality 90 loses (more in very fine texture).

    Raises InputError that names the file when a frame is missing, broken, or of another size than the others.
    """
    assert size is None or shrink is None
    distinct, positions = np.unique(indices, return_inverse=True)
    groups: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    extent = None
    for where, frame in _distinct_frames(path, distinct.tolist(), num_frames, size if half else None):
        height, width = frame.shape[:2]
        extent = extent or (width, height)
        if (width, height) != extent:
            raise InputError(f"{where}: {width}x{height}, other frames of this video {extent[0]}x{extent[1]}")
        if size is not None and size != extent:
            shrink = functools.partial(resize_frames, size=size, mode="bicubic")
        waiting.append(frame)
        if shrink is not None and len(waiting) == RESIZED_AT_ONCE:
            groups.append(shrink(np.stack(waiting)))
            waiting = []
    if waiting:
        stacked = np.stack(waiting)
        groups.append(shrink(stacked) if shrink else stacked)
    frames = groups[0] if len(groups) == 1 else np.concatenate(groups)
    in_order = np.array_equal(positions, np.arange(len(frames)))
    return frames if in_order else frames[positions]


def resize_frames(frames: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Returns uint8 frames ``[n, H, W, 3]`` resized to (width, height), antialiased as Pillow resizes.

    ``mode`` is "bilinear" or "bicubic". torch's uint8 kernels use Pillow's fixed-point weights (less than 1
    % of the values differ, by a rounding tie) at OpenCV's speed, while OpenCV does not antialias.
    """
    width, height = size
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def decode_picture(data: bytes, where: str, flags: int = _READ_FLAGS) -> np.ndarray:
    """Returns a JPEG or PNG as uint8 RGB [H, W, 3]; InputError naming ``where`` if broken or cut short."""
    try:
        frame = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
    except cv2.error:  # a damaged header promises more pixels than OpenCV or the memory takes
        frame = None
    if frame is None:
        raise InputError(f"{where}: not a readable picture ({len(data)} bytes)")
    return frame


def _distinct_frames(
    path: str, wanted: Sequence[int], num_frames: int, half_for: tuple[int, int] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (the file to name in errors, frame) for each of ``wanted``, ascending.

    ``half_for``: the size for which half of a JPEG picture will do, None to decode in full.
    """
    if names_video_file(path) and not os.path.isdir(path):
        for frame in read_video(path, wanted, num_frames):
            yield path, frame
        return
    packed = split_reference(path)
    pictures = read_packed(*packed, wanted, num_frames) if packed else read_folder(path, wanted, num_frames)
    flags = HALF_FLAGS if half_for else _READ_FLAGS
    for number, (where, data) in enumerate(pictures):
        frame = decode_picture(data, where, flags)
        if number == 0 and half_for and not _half_suffices(data, frame, half_for):
            flags = _READ_FLAGS
            frame = decode_picture(data, where, flags)
        yield where, frame


def _half_suffices(data: bytes, halved: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the picture ``data`` is a JPEG, and ``halved`` [h, w, 3] enough for (width, height) ``size``."""
    height, width = halved.shape[:2]
    return data.startswith(b"\xff\xd8") and width >= HALF_SUFFICES * size[0] and height >= HALF_SUFFICES * size[1]
