"""What a video file's header says without decoding: cheap, and not always true."""
from __future__ import annotations

import importlib.metadata
import importlib.util

from utils.errors import InputError

FEWER = 0.9  # of the promised frames: fewer than that are worth a word, a few less are usual


def require_decoder() -> None:
    """Raises InputError where PyAV is not installed, so that it is told once and not of each video."""
    if importlib.util.find_spec("av") is None:
        raise InputError("reading video files needs PyAV: pip install -r requirements.txt")


def decoder_version() -> str | None:
    """Returns PyAV's version, None where it is not installed."""
    return importlib.metadata.version("av") if importlib.util.find_spec("av") else None


def promised_frames(path: str) -> int | None:
    """Returns about how many frames the header promises: stated, or duration times frame rate; None: neither.

    Raises InputError for what cannot be opened as a video.
    """
    import av

    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise InputError(f"{path}: no video in the file")
            if stream.frames:
                return stream.frames
            duration = stream.duration * stream.time_base if stream.duration else None
            if duration is None and container.duration:
                duration = container.duration / av.time_base
            return round(duration * stream.average_rate) if duration and stream.average_rate else None
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot open the video file: {error.strerror}") from error


def shortage(frames: int, promised: int | None) -> str:
    """Returns a note on a video that gave clearly fewer frames than its header promises, else ""."""
    if promised is None or frames >= FEWER * promised:
        return ""
    return f"decodes to {frames} frames, its header promises about {promised}: perhaps cut short"
