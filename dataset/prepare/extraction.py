"""Extraction of one video into one frame folder, which is either complete and marked as finished, or not there at all."""
from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset.frames import FRAME_MARKER
from dataset.video_file import iterate_frames, promised_frames, shortage
from utils.errors import InputError

FRAME_NAME = "image_{:05d}.jpg"  # counted from 1
PARTIAL, REPLACED = ".partial", ".earlier"  # suffixes of the hidden folders beside one that is being written
SMALLEST_SIDE_PX, LARGEST_SIDE_PX = 8, 65_500  # the largest that libjpeg writes
MOST_PIXELS = 2**30  # the most that OpenCV reads
LONG_STILL_S = 10
_SAME_TIME_S = 1e-6


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """What determines a video's frames besides the video; stored in the folder's marker.

    `size` is WIDTHxHEIGHT in px; `short_side` px keeps the aspect ratio; `fps` None keeps every frame.
    """

    short_side: int | None = None
    size: str | None = None
    fps: float | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side is not None and self.size is not None:
            raise InputError("--short_side and --size: expected one of them")
        if self.size is not None and not re.fullmatch("[0-9]{1,5}x[0-9]{1,5}", self.size):
            raise InputError(f"--size {self.size}: expected WIDTHxHEIGHT in px, such as 200x150")
        if self.size is not None or self.short_side is not None:
            flag = f"--size {self.size}" if self.size is not None else f"--short_side {self.short_side}"
            smallest = self.frame_size(1, 1)
            if min(smallest) < SMALLEST_SIDE_PX:
                raise InputError(f"{flag}: each side must be at least {SMALLEST_SIDE_PX} px")
            _check_writable(smallest, flag)
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"--fps {self.fps:g}: must be above 0 and at most 1000")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: must be from 1 to 100")

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) in px of the frames written for a video of this size."""
        if self.size is not None:
            new_width, new_height = map(int, self.size.split("x"))
            return new_width, new_height
        if self.short_side is not None:
            scale, short = self.short_side, min(width, height)
            return max(1, round(width * scale / short)), max(1, round(height * scale / short))
        return width, height


@dataclass(frozen=True, slots=True)
class FrameMarker:
    """What a finished folder holds: video, number of frames, settings, the source file's size and time, and a note.

    The time is for the reader: a plain copy of the source has another one, so nothing depends on it.
    """

    video: str
    frames: int
    settings: dict[str, Any]
    source_bytes: int
    source_mtime_ns: int
    note: str = ""

    def to_json(self) -> str:
        """Returns the text of the marker file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_marker(folder: str | os.PathLike[str]) -> FrameMarker | None:
    """Returns the folder's marker; None if there is no folder, or no marker in it. InputError if it is damaged."""
    path = os.path.join(folder, FRAME_MARKER)
    try:
        with open(path, encoding="utf-8") as file:
            marker = FrameMarker(**json.load(file))
        if not (isinstance(marker.frames, int) and marker.frames > 0 and isinstance(marker.settings, dict)):
            raise ValueError(marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a marker of extract_frames.py; remove its folder to extract it again") from error
    return marker


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One video file (`name`: its path below the source folder), the folder of its frames, and the settings."""

    name: str
    source: Path
    folder: Path
    settings: FrameSettings

    @property
    def partial(self) -> Path:
        """The hidden folder in which the frames are written."""
        return self.folder.with_name(f".{self.folder.name}{PARTIAL}")

    def marker(self, frames: int, note: str = "") -> FrameMarker:
        """Returns the marker of a finished folder for the source file as it is now. InputError if that cannot be read."""
        try:
            status = self.source.stat()
        except OSError as error:
            raise InputError(f"{self.source}: cannot read: {error.strerror}") from error
        return FrameMarker(self.source.name, frames, asdict(self.settings), status.st_size, status.st_mtime_ns, note)


@dataclass(frozen=True, slots=True)
class ExtractionResult:
    """Number of frames written (0: the video is broken), and the reason or a note."""

    frames: int
    reason: str = ""


def extract_video(video: SourceVideo) -> ExtractionResult:
    """Returns how many frames were written to `video.folder`, or why the video is broken.

    An older folder is replaced. Whatever happens, the folder is either as before or finished, and nothing else is left.
    Raises OSError if the destination cannot be written.
    """
    partial = video.partial
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        marker = video.marker(0)
        frames, note = _write_frames(video)
        if video.settings.fps is None:
            note = shortage(frames, promised_frames(str(video.source)))
        (partial / FRAME_MARKER).write_text(replace(marker, frames=frames, note=note).to_json())
        replaced = video.folder.with_name(f".{video.folder.name}{REPLACED}")
        if os.path.lexists(video.folder):
            video.folder.rename(replaced)
        partial.rename(video.folder)
        if os.path.lexists(replaced):
            shutil.rmtree(replaced)
    except InputError as error:
        return ExtractionResult(0, str(error).removeprefix(f"{video.source}: "))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return ExtractionResult(0, "its name is too long for the hidden folder in which its frames are written, which has "
                                f"{1 + len(PARTIAL)} bytes more; rename it")
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # an error in the way here must not hide the first one
    return ExtractionResult(frames, note)


def resample(frames: Iterable[tuple[float, np.ndarray]], fps: float) -> Iterator[np.ndarray]:
    """Yields `fps` frames per second from (time in s, frame): at times k / fps (k = 0, 1, ...) after the first frame, the
    frame nearest in time, the earlier of two equally near ones.

    The times end with the video, whose last frame lasts as long as the one before it. A video slower than `fps` yields
    frames repeatedly; a video of one frame yields it once.
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


def _write_frames(video: SourceVideo) -> tuple[int, str]:
    """Returns (number of frames written to the partial folder, a note). InputError if the video breaks."""
    settings = video.settings
    timed = iterate_frames(str(video.source))
    frames = resample(timed, settings.fps) if settings.fps else (frame for _, frame in timed)
    count, first_size, shown, repeats, longest = 0, None, None, 0, 0
    for count, frame in enumerate(frames, start=1):
        repeats = repeats + 1 if frame is shown else 1
        longest = max(longest, repeats)
        shown = frame
        height, width = frame.shape[:2]
        size = settings.frame_size(width, height)
        first_size = first_size or size
        if size != first_size:
            raise InputError(f"its frame size changes: frame {count} is {size[0]}x{size[1]}, "
                             f"the first {first_size[0]}x{first_size[1]}; --size makes them equal")
        _check_writable(size, "its frames")
        if size != (width, height):
            frame = _resize(frame, size)
        bgr = np.ascontiguousarray(frame[..., ::-1])
        encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
        assert encoded, video.source
        (video.partial / FRAME_NAME.format(count)).write_bytes(data.tobytes())
    assert count, video.source
    if settings.fps and longest > LONG_STILL_S * settings.fps:
        return count, f"one frame fills {longest / settings.fps:.0f} s, {longest} of {count} frames: a gap in its times?"
    return count, ""


def _check_writable(size: tuple[int, int], what: str) -> None:
    if max(size) > LARGEST_SIDE_PX or size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"{what}: {size[0]}x{size[1]} px, an image can have {LARGEST_SIDE_PX} px per side and "
                         f"{MOST_PIXELS} in all")


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the frame resized exactly as reading at that size resizes it. Imports torch, which takes seconds."""
    import torch

    from dataset.frames import resize_frames

    torch.set_num_threads(1)  # the worker processes share the cores
    return resize_frames(frame[None], size, "bicubic")[0]
