"""One video becomes one frame folder: whole and marked as finished, or not there at all."""
from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from dataset.frames import FRAME_MARKER
from dataset.prepare.frame_marker import Marker
from dataset.video_file import iterate_frames, promised_frames, shortage
from utils.errors import InputError

FRAME_NAME = "image_{:05d}.jpg"  # counted from 1
PARTIAL, REPLACED = ".partial", ".earlier"  # endings of the hidden siblings of a folder that is being written
SMALLEST_SIDE_PX, LARGEST_SIDE_PX = 8, 65_500  # libjpeg writes no more
MOST_PIXELS = 2**30  # OpenCV reads no more
LONG_STILL_S = 10
_SAME_TIME_S = 1e-6


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides a video's frames; kept in its folder's marker.

    ``size`` is WIDTHxHEIGHT in px; ``short_side`` px keeps the aspect ratio; ``fps`` None keeps every frame.
    """

    short_side: int | None = None
    size: str | None = None
    fps: float | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side is not None and self.size is not None:
            raise InputError("--short_side and --size: one of them only")
        if self.short_side is not None:
            if self.short_side < SMALLEST_SIDE_PX:
                raise InputError(f"--short_side {self.short_side}: must be at least {SMALLEST_SIDE_PX} px")
            _require_writable(self.short_side, self.short_side, f"--short_side {self.short_side}")
        if self.size is not None:
            sides = re.fullmatch("([0-9]{1,5})x([0-9]{1,5})", self.size)
            if sides is None or min(map(int, sides.groups())) < SMALLEST_SIDE_PX:
                raise InputError(f"--size {self.size}: WIDTHxHEIGHT in px, each at least {SMALLEST_SIDE_PX} and at most "
                                 f"{LARGEST_SIDE_PX}, like 200x150")
            _require_writable(*map(int, sides.groups()), f"--size {self.size}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"--fps {self.fps:g}: must be above 0 and at most 1000")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: must be from 1 to 100")

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns (width, height) in px of the frames written for a video of this height and width."""
        if self.size is not None:
            new_width, new_height = map(int, self.size.split("x"))
            return new_width, new_height
        if self.short_side is not None:
            short = min(height, width)
            return (max(1, round(width * self.short_side / short)), max(1, round(height * self.short_side / short)))
        return width, height


@dataclass(frozen=True, slots=True)
class Video:
    """One source file (``name``: its path below the source folder), the folder of its frames, and the settings."""

    name: str
    source: Path
    folder: Path
    settings: Settings

    @property
    def partial(self) -> Path:
        """The hidden sibling in which the frames are written."""
        return self.folder.with_name(f".{self.folder.name}{PARTIAL}")

    @property
    def replaced(self) -> Path:
        """The hidden sibling that an older folder becomes, just before it is removed."""
        return self.folder.with_name(f".{self.folder.name}{REPLACED}")

    def marker(self, frames: int, note: str = "") -> Marker:
        """Returns the marker of a finished folder, for the source file as it is now. InputError if that cannot be read."""
        try:
            status = self.source.stat()
        except OSError as error:
            raise InputError(f"{self.source}: cannot read: {error.strerror}") from error
        return Marker(self.source.name, frames, asdict(self.settings), status.st_size, status.st_mtime_ns, note)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Number of frames written, and what there is to say: why a video is broken (no frames), or a note."""

    frames: int
    reason: str = ""


class CannotWrite(InputError):
    """The destination cannot be written, which ends the whole extraction: no space, no permission."""


def extract_video(video: Video) -> Outcome:
    """Returns how many frames were written to ``video.folder``, or why the video is broken.

    An older folder is replaced. Whatever happens, the folder is either as before or finished. Raises
    CannotWrite, with nothing left behind, where the destination cannot be written.
    """
    try:
        _make_empty(video.partial)
        marker = video.marker(0)
        frames, note = _write_frames(video)
        if video.settings.fps is None:
            note = shortage(frames, promised_frames(str(video.source)))
        marker = replace(marker, frames=frames, note=note)
        _write(video.partial / FRAME_MARKER, marker.to_json().encode())
        _put_in_place(video)
    except InputError as error:
        shutil.rmtree(video.partial, ignore_errors=True)  # the error that counts is the one on its way
        if isinstance(error, CannotWrite):
            raise
        return Outcome(0, str(error).removeprefix(f"{video.source}: "))
    return Outcome(frames, note)


def resample(frames: Iterable[tuple[float, np.ndarray]], fps: float) -> Iterator[np.ndarray]:
    """Yields ``fps`` frames for each second: for the moments k / fps, k = 0, 1, ..., after the first frame's
    time, the frame nearest in time; of two equally near ones the earlier.

    The moments end before the video does, whose last frame lasts as long as the one before it. A video
    slower than ``fps`` gives frames more than once; a video of one frame gives it once.
    """
    number, start, time, interval, shown = 0, 0.0, None, 0.0, None
    for next_time, next_frame in frames:
        if time is None:
            start = next_time
        else:
            interval = next_time - time
            middle = (time + next_time) / 2
            while start + number / fps <= middle + _SAME_TIME_S:
                yield shown
                number += 1
        time, shown = next_time, next_frame
    if time is not None:
        while number == 0 or start + number / fps < time + interval - _SAME_TIME_S:
            yield shown
            number += 1


def _write_frames(video: Video) -> tuple[int, str]:
    """Returns (how many frames it wrote to the partial folder, a note). InputError when the video breaks."""
    settings = video.settings
    timed = iterate_frames(str(video.source))
    frames = resample(timed, settings.fps) if settings.fps else (frame for _, frame in timed)
    quality = [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
    count, first_size, shown, times_shown, longest = 0, None, None, 0, 0
    for count, frame in enumerate(frames, start=1):
        times_shown = times_shown + 1 if frame is shown else 1
        longest = max(longest, times_shown)
        shown = frame
        height, width = frame.shape[:2]
        size = settings.frame_size(height, width)
        first_size = first_size or size
        if size != first_size:
            raise InputError(f"its picture size changes: frame {count} is {size[0]}x{size[1]}, "
                             f"the first {first_size[0]}x{first_size[1]}; --size makes them equal")
        _require_writable(*size, "its frames")
        if size != (width, height):
            frame = _resize(frame, size)
        encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), quality)
        assert encoded, video.source
        _write(video.partial / FRAME_NAME.format(count), data.tobytes())
    assert count, video.source
    if settings.fps and longest > LONG_STILL_S * settings.fps:
        return count, f"one frame fills {longest / settings.fps:.0f} s, {longest} of {count} frames: a gap in its times?"
    return count, ""


def _require_writable(width: int, height: int, what: str) -> None:
    if max(width, height) > LARGEST_SIDE_PX or width * height > MOST_PIXELS:
        raise InputError(f"{what}: {width}x{height} px, a picture can have {LARGEST_SIDE_PX} at a side and {MOST_PIXELS} in "
                         "all")


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the frame resized as reading at that size resizes it. Imports torch, which takes seconds."""
    import torch

    from dataset.frames import resize_frames

    torch.set_num_threads(1)  # the processes share the cores
    return resize_frames(frame[None], size, "bicubic")[0]


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CannotWrite(f"{path}: cannot write: {error.strerror}") from error


def _make_empty(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError("its name is too long for the hidden folder in which its frames are written, "
                             f"which has {1 + len(PARTIAL)} bytes more; rename it") from error
        raise CannotWrite(f"{folder.parent}: cannot write into it: {error.strerror}") from error


def _put_in_place(video: Video) -> None:
    try:
        if os.path.lexists(video.folder):
            video.folder.rename(video.replaced)
        video.partial.rename(video.folder)
        if os.path.lexists(video.replaced):
            shutil.rmtree(video.replaced)
    except OSError as error:
        raise CannotWrite(f"{video.folder}: cannot put it in place: {error.strerror}") from error
