"""A video's path and frame indices -> uint8 RGB frames, however the video is stored.

A path is one of these; every program asks `locate_video`:

    frames/v_001              frame folder: numbered images `image_00001.jpg`, `image_00002.jpg`, ...
    frames/v_001/img_*.jpg    frame folder with several series of images: the one of this prefix and suffix
    videos/v_001.mp4          video file, decoded by PyAV (`video_file.py`): by its suffix, unless it is a folder
    shard_00000.tar/v_001     frame folder inside a packed shard (`packed.py`), same pixels as the folder itself

In a frame folder other prefixes, numbers of digits, jpg or png, and numbering from 0 are detected; files whose names
begin with a dot are ignored. Suffixes are recognized in any letter case.
"""
from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg

from utils.errors import InputError, os_error_as_input
from utils.files import map_in_threads

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .3gp .avi .mkv .webm .mpg .mpeg .ts .flv .wmv .ogv".split())
FRAME_MARKER = ".frames.json"  # written by extraction into each finished frame folder
HALF_SUFFICES = 5 / 6          # of the wanted width and height
FRAMES_PER_RESIZE = 8          # as fast as all at once, without holding all full-size frames of a long video

_FRAME_FILE = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]+)(?P<suffix>\.(?:jpg|jpeg|png))", re.IGNORECASE)
_SHARD_NAME = re.compile(r"(?<=[^/])\.tar(?=/.)", re.IGNORECASE)
_JPEG_START = b"\xff\xd8"


class StoredVideo(NamedTuple):
    """Where a video is: the folder, file or shard at `path`, and in it the series of images or the packed video `inner`."""

    kind: Literal["folder", "file", "packed"]
    path: str
    inner: str = ""


@dataclass(frozen=True, slots=True)
class FrameNaming:
    """File names of a folder's frames: prefix, zero-padded number counted from `first`, suffix."""

    prefix: str = "image_"
    digits: int = 5
    suffix: str = ".jpg"
    first: int = 1

    def file_name(self, index: int) -> str:
        """Returns the file name of frame `index`, counted from 0."""
        return f"{self.prefix}{index + self.first:0{self.digits}d}{self.suffix}"


class SeveralSeriesError(InputError):
    """A frame folder has several series of numbered images, and none is chosen."""


class FrameSeries(NamedTuple):
    """Numbered images of a folder."""

    naming: FrameNaming
    count: int
    usable: int   # of these, before the first gap
    missing: int  # between the first and the last


_USUAL = FrameNaming()
_USUAL_NAMES = [_USUAL.file_name(index) for index in range(9999)]


def read_frames(*arguments: Any, **named: Any) -> np.ndarray:
    """Returns uint8 RGB [n, H, W, 3]: the frames of `read_frame_list`, with the same arguments, in one array."""
    return np.stack(read_frame_list(*arguments, **named))


def read_frame_list(path: str, indices: np.ndarray, num_frames: int, size: tuple[int, int] | None = None,
                    shrink: Callable[[np.ndarray], np.ndarray] | None = None, half: bool = False) -> list[np.ndarray]:
    """Returns the frames at `indices`, each uint8 RGB [H, W, 3]; each distinct one is decoded once.

    Args:
        path: frame folder, video file, or video in a packed shard.
        indices: [n] frame indices from 0, in any order, with or without repeats.
        num_frames: number of frames given in the csv; used in error messages only.
        size: (width, height) to resize to (antialiased bicubic, aspect ratio ignored). None: stored size.
        shrink: replaces `size` by a function [n, H, W, 3] -> [n, h, w, 3], called for every `FRAMES_PER_RESIZE` decoded
            frames: videos may be too long for memory at full size.
        half: decode JPEGs at half their width and height, and do not resize them, where this gives at least
            `HALF_SUFFICES` of `size`. For callers that crop and resize anyway: the loss is smaller than that of JPEG
            compression at quality 90, except in very fine texture.

    Raises InputError, naming the file, if a frame is missing, broken, or differs in size from the others.
    """
    assert size is None or shrink is None
    distinct, positions = np.unique(indices, return_inverse=True)
    decoded = _distinct_frames(path, distinct.tolist(), num_frames, size if half else None)
    frames, extent = [], None
    while chunk := list(itertools.islice(decoded, FRAMES_PER_RESIZE)):
        for where, frame, halved in chunk:
            height, width = frame.shape[:2]
            extent = extent or (width, height)
            if (width, height) != extent:
                raise InputError(f"{where}: {width}x{height}, other frames of this video {extent[0]}x{extent[1]}")
        if size not in (None, extent) and not halved:
            shrink = functools.partial(resize_frames, size=size, mode="bicubic")
        images = [frame for _, frame, _ in chunk]
        frames.extend(shrink(np.stack(images)) if shrink else images)
    return [frames[position] for position in positions.tolist()]


def resize_frames(frames: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Returns uint8 frames [n, H, W, 3] resized to (width, height) with antialiasing; `mode`: "bilinear" or "bicubic".

    torch's uint8 kernels use the fixed-point weights of Pillow (fewer than 1 % of the values differ, by one rounding
    step) and are as fast as OpenCV, which does not antialias.
    """
    import torch  # here, as scripts that only list frame folders start faster without it
    import torch.nn.functional as F

    width, height = size
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def write_frame(folder: Path, index: int, frame: np.ndarray, quality: int) -> None:
    """Writes a frame, uint8 RGB [H, W, 3], as the JPEG image of frame `index`, from 0, in a frame folder."""
    encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded, folder
    (folder / _USUAL.file_name(index)).write_bytes(data.tobytes())


def decode_image(data: bytes, where: str, half: bool = False, strict: bool = False) -> np.ndarray:
    """Returns a JPEG or PNG as uint8 RGB [H, W, 3], without applying its EXIF orientation.

    JPEGs are decoded by simplejpeg, PNGs and JPEGs that it rejects by OpenCV (of 634 valid files Pillow opens none
    more). `half`: half the width and height, rounded up. Raises InputError, which begins with `where`, for a broken or
    truncated image; with `strict` also for a JPEG with damage that libjpeg only warns about.
    """
    if data.startswith(_JPEG_START):
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2] if half else (0, 0)
            return simplejpeg.decode_jpeg(data, min_height=(height + 1) // 2, min_width=(width + 1) // 2,
                                          min_factor=2 if half else 1)
        except (ValueError, MemoryError) as error:  # damaged, or a kind of JPEG that simplejpeg does not support
            if strict:
                try:
                    simplejpeg.decode_jpeg(data, strict=False)  # accepts damage, but no other kinds of JPEG
                except (ValueError, MemoryError):
                    pass
                else:
                    raise InputError(f"{where}: not a readable image ({len(data)} bytes): {error}") from error
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_REDUCED_GRAYSCALE_2 if half else 0)
    try:
        frame = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
    except cv2.error:  # a damaged header that promises more pixels than OpenCV accepts
        frame = None
    if frame is None:
        raise InputError(f"{where}: not a readable image ({len(data)} bytes)")
    return frame


def locate_video(path: str) -> StoredVideo:
    """Returns what the path means. It need not exist; the disk is asked only where the name leaves it open."""
    for found in _SHARD_NAME.finditer(path):
        shard = path[: found.end()]
        if not os.path.isdir(shard):
            return StoredVideo("packed", shard, path[found.end() + 1 :])
    if names_video_file(path) and not os.path.isdir(path):
        return StoredVideo("file", path)
    return StoredVideo("folder", *split_series(path))


def names_video_file(path: str) -> bool:
    """Returns whether the path has the suffix of a video file. A folder or a packed video may have one too."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def split_series(path: str) -> tuple[str, str]:
    """Returns (folder, series) of `FOLDER/img_*.jpg`; ("" as the series: no path with `*`, or a folder of this name)."""
    folder, name = os.path.split(path)
    return (folder, name) if "*" in name and not os.path.isdir(path) else (path, "")


def video_name(path: str) -> str:
    """Returns a video's name without folders, series and a video file's suffix: the same however the video is stored."""
    name = os.path.basename(split_series(path)[0])
    return os.path.splitext(name)[0] if names_video_file(name) else name


def video_identity(path: str) -> str:
    """Returns text that is equal for all paths to one video, also by links; the path where it cannot be read."""
    video = locate_video(path)
    try:
        status = os.stat(video.path)
    except OSError:
        return path
    return f"{status.st_dev}:{status.st_ino}" + (f":{video.inner}" if video.kind == "packed" else "")


def video_identities(paths: Sequence[str]) -> list[str]:
    """Returns the identity of each path, found by threads."""
    return map_in_threads(video_identity, paths)


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Returns the path made absolute, with one spelling: without `.`, `//`, and `..`, which behind a link is the parent of
    the link's target, as for the system."""
    path = os.fspath(path)
    if not path.startswith("/"):
        path = os.path.join(os.getcwd(), path)
    parts = path.split("/")
    if ".." in parts:
        end = len(parts) - parts[::-1].index("..")  # behind the last one
        above = "/".join(parts[:end])
        plain, parent = os.path.normpath(above), os.path.realpath(above)
        path = os.path.join(plain if os.path.realpath(plain) == parent else parent, *parts[end:])
    return os.path.normpath(path)


def find_naming(folder: str) -> FrameNaming:
    """Returns the naming of the folder's frames: the usual one if its first file exists, else that of `find_series`."""
    for naming in () if "*" in os.path.basename(folder) else (FrameNaming(first=0), _USUAL):
        if os.path.exists(os.path.join(folder, naming.file_name(0))):
            return naming
    return find_series(folder).naming


def find_series(folder: str, names: Collection[str] | None = None) -> FrameSeries:
    """Returns the series of frames that a folder's file names form; `names`: the file names if already listed.

    `FOLDER/img_*.jpg` chooses one of several series. Raises InputError, which begins with the folder, if it cannot be
    listed or has no frames, and SeveralSeriesError.
    """
    where, chosen = split_series(folder)
    if names is None:
        with os_error_as_input(f"{folder}: cannot read the frame folder"):
            names = os.listdir(where)
    ordered = sorted(name for name in names if not name.startswith("."))
    if not chosen and ordered and ordered == _USUAL_NAMES[: len(ordered)]:  # the fast way of checking 200,000 folders
        return FrameSeries(_USUAL, len(ordered), len(ordered), 0)
    found = group_numbers(ordered)
    usual = found.get((_USUAL.prefix, _USUAL.suffix), [])
    if chosen:
        found = {kind: texts for kind, texts in found.items() if "*".join(kind) == chosen}
    elif "00000" in usual or "00001" in usual:  # then other series, such as optical flow, are ignored
        found = {(_USUAL.prefix, _USUAL.suffix): [text for text in usual if text == f"{int(text):05d}"]}
    if not found:
        raise InputError(f"{folder}: no frames in it, expected files such as {chosen or _USUAL.file_name(0)}")
    if len(found) > 1:
        kinds = sorted(map("*".join, found))
        raise SeveralSeriesError(f"{folder}: several series of frames ({', '.join(kinds)}), expected one like "
                                 f"{_USUAL.file_name(0)}; make_csv.py --series '{kinds[-1]}' chooses one, as does "
                                 f"{folder}/{kinds[-1]} in a csv")
    [((prefix, suffix), texts)] = found.items()
    numbers = set(map(int, texts))
    naming = FrameNaming(prefix, min(map(len, texts)), suffix, min(numbers))
    if any(text != f"{int(text):0{naming.digits}d}" for text in texts):
        raise InputError(f"{folder}: frame numbers of different digit counts ({min(texts)}, {max(texts)})")
    if naming.first > 1:
        raise InputError(f"{folder}: the first frame is {naming.file_name(0)}, expected number 0 or 1")
    usable = 1
    while naming.first + usable in numbers:
        usable += 1
    return FrameSeries(naming, len(numbers), usable, max(numbers) - naming.first + 1 - len(numbers))


def group_numbers(names: Collection[str]) -> dict[tuple[str, str], list[str]]:
    """Returns (prefix, suffix) -> numbers, as text, of the numbered images among the file names."""
    found: dict[tuple[str, str], list[str]] = {}
    for match in filter(None, map(_FRAME_FILE.fullmatch, names)):
        found.setdefault((match["prefix"], match["suffix"]), []).append(match["number"])
    return found


def count_images(path: str) -> int:
    """Returns how many frames of a frame folder, up to a gap, or of a packed video can be read; InputError for none."""
    stored = locate_video(path)
    if stored.kind == "packed":
        from dataset.packed import open_shard

        return len(open_shard(stored.path).find(stored.inner))
    return find_series(path).usable


def stored_images(path: str, wanted: Sequence[int], num_frames: int) -> Iterator[tuple[str, bytes]]:
    """Returns `read_folder` of a frame folder, or `read_packed` of a packed video."""
    stored = locate_video(path)
    if stored.kind == "packed":
        from dataset.packed import read_packed

        return read_packed(stored.path, stored.inner, wanted, num_frames)
    return read_folder(path, wanted, num_frames)


def read_folder(folder: str, wanted: Sequence[int], num_frames: int) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of the image of each frame in `wanted`, counted from 0.

    `num_frames` is used in error messages only. Raises InputError, naming the file, if a frame is missing.
    """
    naming, where = find_naming(folder), split_series(folder)[0]
    for index in wanted:
        path = os.path.join(where, naming.file_name(index))
        what = f"{path}: cannot read frame {index + 1} of the {num_frames} given in the csv"
        with os_error_as_input(what), open(path, "rb", buffering=0) as file:
            yield path, file.read()


def _distinct_frames(path: str, wanted: Sequence[int], num_frames: int,
                     half_for: tuple[int, int] | None) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yields (file named in errors, frame, whether it is decoded at half size) for each of `wanted`, ascending.

    `half_for`: the size for which half of a JPEG may suffice, None to decode in full. The first image decides for all.
    """
    if locate_video(path).kind == "file":
        from dataset.video_file import read_video

        for frame in read_video(path, wanted, num_frames):
            yield path, frame, False
        return
    half = half_for is not None
    for number, (where, data) in enumerate(stored_images(path, wanted, num_frames)):
        if number == 0 and half:
            half = _half_suffices(data, half_for)
        yield where, decode_image(data, where, half), half


def _half_suffices(data: bytes, size: tuple[int, int]) -> bool:
    """Returns whether the image is a JPEG of which half the width and height suffices for (width, height) `size`."""
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        return False
    return (width + 1) // 2 >= HALF_SUFFICES * size[0] and (height + 1) // 2 >= HALF_SUFFICES * size[1]
