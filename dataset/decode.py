"""Frame folders read from disk as uint8 RGB arrays ``[n, H, W, 3]``.

A folder holds one video's frames as numbered pictures: ``image_00001.jpg``, ``image_00002.jpg``, ... Other
prefixes, digit counts, jpg/png and numbering from 0 are found out from the folder itself.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import InputError

# OpenCV without its EXIF rotation: extraction wrote the pixels the right way up, and every frame alike.
_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_FRAME_FILE = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]+)(?P<suffix>\.(?:jpg|jpeg|png))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FrameNaming:
    """How a folder names its frames: prefix, zero-padded number counted from ``first``, suffix."""

    prefix: str = "image_"
    digits: int = 5
    suffix: str = ".jpg"
    first: int = 1

    def file_name(self, index: int) -> str:
        """Returns the file name of frame ``index``, counted from 0."""
        return f"{self.prefix}{index + self.first:0{self.digits}d}{self.suffix}"


def find_naming(folder: str) -> FrameNaming:
    """Returns the folder's naming: from two look-ups where it is the usual one, else from the list of files.

    Raises InputError when the folder cannot be read, has no frames, or leaves open which files are frames.
    """
    for naming in (FrameNaming(first=0), FrameNaming()):
        if os.path.exists(os.path.join(folder, naming.file_name(0))):
            return naming
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot read the frame folder: {error.strerror}") from error
    numbers: dict[tuple[str, str], list[str]] = {}
    for match in filter(None, map(_FRAME_FILE.fullmatch, names)):
        numbers.setdefault((match["prefix"], match["suffix"]), []).append(match["number"])
    if not numbers:
        raise InputError(f"{folder}: no frames in it, expected files such as image_00001.jpg")
    if len(numbers) > 1:
        kinds = ", ".join(sorted(f"{prefix}*{suffix}" for prefix, suffix in numbers))
        raise InputError(f"{folder}: several series of frames ({kinds}), expected one like image_00001.jpg")
    [((prefix, suffix), found)] = numbers.items()
    naming = FrameNaming(prefix, min(map(len, found)), suffix, min(map(int, found)))
    if any(number != f"{int(number):0{naming.digits}d}" for number in found):
        raise InputError(f"{folder}: frame numbers of different digit counts ({min(found)}, {max(found)})")
    if naming.first > 1:
        raise InputError(f"{folder}: the first frame is {naming.file_name(0)}, expected number 0 or 1")
    return naming


def read_frames(
    folder: str, indices: np.ndarray, num_frames: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the frames at ``indices`` as uint8 RGB ``[n, H, W, 3]``, each distinct one decoded once.

    Args:
        folder: the video's frame folder.
        indices: [n] frame indices from 0, in any order, repeats allowed.
        num_frames: the number of frames that the video is said to have; only named in errors.
        size: (width, height) to resize to, aspect ratio ignored, antialiased bicubic; None: as stored.

    Raises InputError that names the file when a frame is missing, broken, or of another size than the others.
    """
    naming = find_naming(folder)
    distinct, positions = np.unique(indices, return_inverse=True)
    frames: list[np.ndarray] = []
    for index in distinct.tolist():
        path = os.path.join(folder, naming.file_name(index))
        frame = _read_image(path, index, num_frames)
        if frames and frame.shape != frames[0].shape:
            raise InputError(f"{path}: {_extent(frame)}, other frames of this video {_extent(frames[0])}")
        frames.append(frame)
    stacked = np.stack(frames)
    if size is not None and size != (stacked.shape[2], stacked.shape[1]):
        stacked = resize_frames(stacked, size, "bicubic")
    in_order = np.array_equal(positions, np.arange(len(stacked)))
    return stacked if in_order else stacked[positions]


def resize_frames(frames: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Returns uint8 frames ``[n, H, W, 3]`` resized to (width, height), antialiased as Pillow resizes.

    ``mode`` is "bilinear" or "bicubic". torch's uint8 kernels use Pillow's fixed-point weights (less than 1
    % of the values differ, by a rounding tie) at OpenCV's speed, while OpenCV does not antialias.
    """
    width, height = size
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def _read_image(path: str, index: int, num_frames: int) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read frame {index + 1} of the {num_frames} that the csv gives: {error.strerror}"
        ) from error
    frame = cv2.imdecode(data, _READ_FLAGS) if data.size else None
    if frame is None:
        raise InputError(f"{path}: not a readable picture ({data.size} bytes)")
    return frame


def _extent(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
