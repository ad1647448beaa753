"""Frames of a video as uint8 RGB arrays ``[n, H, W, 3]``, however the video is kept.

A video is a folder of numbered pictures (``frame_folder.py``), a video file (``video_file.py``), or a folder
of pictures inside a packed shard, ``SHARD.tar/VIDEO`` (``packed.py``). ``read_frames`` takes each alike, and
gives the same pixels for a folder and for the shard that it was packed into. ``read_frame_list`` is for those who
cut the frames up anyway: it leaves them where they were decoded.
"""
from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F

from dataset.frame_folder import read_folder
from dataset.packed import read_packed, split_reference
from dataset.video_file import names_video_file, read_video
from utils.errors import InputError

# OpenCV without its EXIF rotation: extraction wrote the pixels the right way up, and every frame alike.
_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

_JPEG_BEGINS = b"\xff\xd8"
HALF_SUFFICES = 5 / 6  # of the wanted width and height

RESIZED_AT_ONCE = 8  # as fast as all at once; more full-size frames of a large video are not held


def read_frames(*arguments: Any, **named: Any) -> np.ndarray:
    """Returns what ``read_frame_list`` returns of the same arguments as one array, uint8 RGB ``[n, H, W, 3]``."""
    return np.stack(read_frame_list(*arguments, **named))


def read_frame_list(
    path: str,
    indices: np.ndarray,
    num_frames: int,
    size: tuple[int, int] | None = None,
    shrink: Callable[[np.ndarray], np.ndarray] | None = None,
    half: bool = False,
) -> list[np.ndarray]:
    """Returns the frames at ``indices``, each uint8 RGB ``[H, W, 3]``; each distinct one is decoded once.

    Args:
        path: the video's frame folder, its file, or its place in a shard.
        indices: [n] frame indices from 0, in any order, repeats allowed.
        num_frames: the number of frames that the video is said to have; only named in errors.
        size: (width, height) to resize to, aspect ratio ignored, antialiased bicubic; None: as stored.
        shrink: instead of ``size``, what to do to frames, [n, H, W, 3] -> [n, h, w, 3], whenever n =
            ``RESIZED_AT_ONCE`` are decoded; for long videos, which as stored would not fit into memory.
        half: where half the width and height of JPEG pictures is at least ``HALF_SUFFICES`` of ``size``, decode them
            at half and leave them so, instead of resizing them to ``size``: for those who resize them anyway. After
            a crop and resize they are nearer to frames decoded in full than compression at quality 90 leaves these
            to the original (more is lost in very fine texture).

    Raises InputError that names the file when a frame is missing, broken, or of another size than the others.
    """
    assert size is None or shrink is None
    distinct, positions = np.unique(indices, return_inverse=True)
    frames: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    extent = None
    for where, frame, halved in _distinct_frames(path, distinct.tolist(), num_frames, size if half else None):
        height, width = frame.shape[:2]
        extent = extent or (width, height)
        if (width, height) != extent:
            raise InputError(f"{where}: {width}x{height}, other frames of this video {extent[0]}x{extent[1]}")
        if size is not None and size != extent and not halved:
            shrink = functools.partial(resize_frames, size=size, mode="bicubic")
        waiting.append(frame)
        if len(waiting) == RESIZED_AT_ONCE:
            frames.extend(shrink(np.stack(waiting)) if shrink else waiting)
            waiting = []
    if waiting:
        frames.extend(shrink(np.stack(waiting)) if shrink else waiting)
    return [frames[position] for position in positions.tolist()]


def resize_frames(frames: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Returns uint8 frames ``[n, H, W, 3]`` resized to (width, height), antialiased as Pillow resizes.

    ``mode`` is "bilinear" or "bicubic". torch's uint8 kernels use Pillow's fixed-point weights (less than 1
    % of the values differ, by a rounding tie) at OpenCV's speed, while OpenCV does not antialias.
    """
    width, height = size
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def decode_picture(data: bytes, where: str, half: bool = False) -> np.ndarray:
    """Returns a JPEG or PNG as uint8 RGB [H, W, 3]; InputError naming ``where`` if broken or cut short.

    ``half``: a JPEG at half its width and height, rounded up, as libjpeg-turbo's inverse transform yields it directly.
    """
    if data.startswith(_JPEG_BEGINS):
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2] if half else (0, 0)
            return simplejpeg.decode_jpeg(data, min_height=(height + 1) // 2, min_width=(width + 1) // 2,
                                          min_factor=2 if half else 1)
        except (ValueError, MemoryError):  # damaged, or of a kind that it does not know: OpenCV decides
            pass
    flags = _READ_FLAGS | (cv2.IMREAD_REDUCED_GRAYSCALE_2 if half else 0)
    try:
        frame = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
    except cv2.error:  # a damaged header promises more pixels than OpenCV or the memory takes
        frame = None
    if frame is None:
        raise InputError(f"{where}: not a readable picture ({len(data)} bytes)")
    return frame


def _distinct_frames(
    path: str, wanted: Sequence[int], num_frames: int, half_for: tuple[int, int] | None
) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yields (the file to name in errors, frame, whether it is decoded at half) for each of ``wanted``, ascending.

    ``half_for``: the size for which half of a JPEG picture will do, None to decode in full. The first picture tells
    for all.
    """
    if names_video_file(path) and not os.path.isdir(path):
        for frame in read_video(path, wanted, num_frames):
            yield path, frame, False
        return
    packed = split_reference(path)
    pictures = read_packed(*packed, wanted, num_frames) if packed else read_folder(path, wanted, num_frames)
    half = half_for is not None
    for number, (where, data) in enumerate(pictures):
        if number == 0 and half:
            half = _half_suffices(data, half_for)
        yield where, decode_picture(data, where, half), half


def _half_suffices(data: bytes, size: tuple[int, int]) -> bool:
    """Whether the picture ``data`` is a JPEG of which half is enough for (width, height) ``size``."""
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        return False
    return (width + 1) // 2 >= HALF_SUFFICES * size[0] and (height + 1) // 2 >= HALF_SUFFICES * size[1]
