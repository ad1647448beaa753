"""Frames of video files, decoded by PyAV (FFmpeg's libraries) as uint8 RGB arrays ``[H, W, 3]``.

A file's frames are those that its decoder gives from the file's start to its end, in presentation order, with
the file's rotation applied: ``iterate_frames`` yields them all, ``read_video`` some of them, pixel for pixel
the same. Their times may be uneven; a frame's index is its rank, whatever the time between frames.

Random access goes by an index of the file's packets, read without decoding: each frame's time and which
frames start anew (keyframes). Decoding starts at the last keyframe at or before the wanted frame, and each
frame's time is compared with the index on the way. Where packets are no reliable index (without times; before
the first keyframe; to be discarded; of codecs whose packets may hold no frame, such as Xvid's mpeg4 and vp8),
frames are counted by decoding from the start. Only in a file that is damaged inside may the two ways differ.

Each call opens the file, decodes in the calling thread alone, and closes it. Between calls a process keeps but the
indexes of long videos, whose reading takes far longer than decoding some frames: the file is read to its end.
"""
from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import InputError

# Codecs of which each packet gives exactly one frame, by the decoder that PyAV picks.
_ONE_FRAME_A_PACKET = frozenset("h264 hevc vp9 libvpx-vp9 av1 libdav1d mjpeg".split())
_LONG = 1000  # frames
_MOST_KEPT = 2_000_000  # frames, of all indexes that are kept: 16 MB, 48 where each is a keyframe


@dataclass(frozen=True, slots=True)
class _PacketIndex:
    """What the packets tell of the frames: times [n] in the stream's unit, ascending; start points [k].

    ``starts`` are ranks of frames at which decoding may start, ascending; ``start_dts`` [k] their decoding times,
    or the times at which they are shown where a format has no others.
    """

    times: np.ndarray
    starts: np.ndarray
    start_dts: np.ndarray


_kept_indexes: dict[tuple[str, int, int], _PacketIndex] = {}  # by path, time of change in ns and bytes


class _Unindexed(Exception):
    """The decoder's frames are not those of the packet index."""


def iterate_frames(path: str) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time in s, frame uint8 RGB [H, W, 3]) of every frame in presentation order.

    Times rise strictly; the first need not be 0. A frame without a time, or with one that does not rise,
    comes one average frame interval after the frame before it.

    Raises InputError, which names the path and the reason, for a file without video, without frames, that
    is no video file, or that breaks on the way.
    """
    with _open_video(path) as (container, stream):
        convert = _RgbConverter(path)
        interval = float(1 / (stream.average_rate or 25))
        previous = None
        for frame in _decode(path, container, stream):
            time = frame.time
            if previous is not None and (time is None or time <= previous):
                time = previous + interval
            previous = time or 0.0
            yield previous, convert(frame)
        if previous is None:
            raise InputError(f"{path}: no frame in the video file")


def count_frames(path: str) -> int:
    """Returns how many frames ``iterate_frames`` yields: from the packets where they tell, else by decoding.

    A file that is damaged inside may decode to fewer frames than its packets promise; reading then fails.
    """
    with _open_video(path) as (container, stream):
        index = _read_index(path, container, stream)
        if index is not None:
            return len(index.times)
    with _open_video(path) as (container, stream):
        count = sum(1 for _ in _decode(path, container, stream))
    if count == 0:
        raise InputError(f"{path}: no frame in the video file")
    return count


def read_video(path: str, wanted: Sequence[int], num_frames: int) -> Iterator[np.ndarray]:
    """Yields the frames at ``wanted`` (ascending, from 0), uint8 RGB [H, W, 3], equal to ``iterate_frames``'.

    Decodes each group of pictures at most once, and none between. ``num_frames``, the number of frames that
    the video is said to have, is only named in errors. Raises InputError as ``iterate_frames``, and for an
    index behind the last frame.
    """
    convert = _RgbConverter(path)
    done = 0
    with _open_video(path) as (container, stream):
        index = _find_index(path, container, stream)
        if index is not None and wanted[-1] < len(index.times):
            with contextlib.suppress(_Unindexed):  # then from the file's start, below
                for frame in _seek_and_decode(path, container, stream, index, wanted):
                    yield convert(frame)
                    done += 1
    if done < len(wanted):
        with _open_video(path) as (container, stream):
            rank = -1
            for rank, frame in enumerate(_decode(path, container, stream)):
                if rank == wanted[done]:
                    yield convert(frame)
                    done += 1
                    if done == len(wanted):
                        return
        raise InputError(
            f"{path}: frame {wanted[done] + 1} of the {num_frames} that the csv gives is asked for, "
            f"the video file has {rank + 1}"
        )


@contextlib.contextmanager
def _open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """Opens the file; gives (PyAV container, its video stream) and closes the file at the end."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: reading video files needs PyAV: pip install 'av>=17,<19'") from error
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")  # else a colon may end a protocol's name
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot open the video file: {error.strerror}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise InputError(f"{path}: no video in the file that can be decoded")
        stream.codec_context.thread_count = 1  # a loader has a process for each core
        yield container, stream


def _decode(path: str, container: Any, stream: Any) -> Iterator[Any]:
    """Yields the stream's PyAV frames from where the container stands to its end."""
    import av

    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        raise InputError(f"{path}: the video file breaks on the way: {error.strerror}") from error


def _find_index(path: str, container: Any, stream: Any) -> _PacketIndex | None:
    """Returns the index of an open file, as kept, or else read; None where packets do not tell."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the video file: {error.strerror}") from error
    key = path, status.st_mtime_ns, status.st_size
    index = _kept_indexes.get(key) or _read_index(path, container, stream)
    if index is not None and len(index.times) >= _LONG and key not in _kept_indexes:
        _kept_indexes[key] = index
        while sum(len(kept.times) for kept in _kept_indexes.values()) > _MOST_KEPT:
            del _kept_indexes[next(iter(_kept_indexes))]  # the oldest
    return index


def _read_index(path: str, container: Any, stream: Any) -> _PacketIndex | None:
    """Returns the index of an open file, which it reads to its end; None where packets do not tell."""
    import av

    if stream.codec_context.name not in _ONE_FRAME_A_PACKET:
        return None
    times, decoding_times, keys = [], [], []
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # PyAV's sign of the end
                continue
            if packet.pts is None or packet.is_corrupt or packet.is_discard:
                return None
            times.append(packet.pts)
            decoding_times.append(packet.pts if packet.dts is None else packet.dts)
            keys.append(packet.is_keyframe)
    except av.FFmpegError as error:
        raise InputError(f"{path}: the video file breaks on the way: {error.strerror}") from error
    order = np.argsort(times, kind="stable")  # [n]: for each frame, its packet's position in the file
    ranked = np.array(times, dtype=np.int64)[order]
    if not len(order) or order[0] != 0 or not keys[0] or not (np.diff(ranked) > 0).all():
        return None
    first_from_here = np.minimum.accumulate(order[::-1])[::-1]
    starts = np.flatnonzero(np.array(keys)[order] & (first_from_here == order))
    return _PacketIndex(ranked, starts, np.array(decoding_times, dtype=np.int64)[order[starts]])


def _seek_and_decode(
    path: str, container: Any, stream: Any, index: _PacketIndex, wanted: Sequence[int]
) -> Iterator[Any]:
    """Yields the PyAV frames at ``wanted``; raises _Unindexed where the decoder contradicts the index."""
    frames, following = iter(()), len(index.times)  # the running decoder, the rank of its next frame
    for rank in wanted:
        number = int(np.searchsorted(index.starts, rank, side="right")) - 1
        start = int(index.starts[number])
        if not start <= following <= rank:
            frames = _decode_from(path, container, stream, int(index.times[start]), int(index.start_dts[number]))
            following = start
        for frame in frames:
            if frame.pts != index.times[following]:
                raise _Unindexed
            following += 1
            if following > rank:
                yield frame
                break
        else:
            raise _Unindexed


def _decode_from(
    path: str, container: Any, stream: Any, time: int, decoding_time: int
) -> Iterator[Any]:
    """Yields the PyAV frames from the keyframe with these times on; raises _Unindexed if it is not found.

    Formats differ in which of the two times they look for.
    """
    import av

    for target in (decoding_time, time):
        try:
            container.seek(target, stream=stream)
            packets = container.demux(stream)
            first = next(packets)
        except av.FFmpegError as error:
            raise _Unindexed from error
        if first.pts == time:
            break
    else:
        raise _Unindexed
    try:
        for packet in itertools.chain([first], packets):
            yield from packet.decode()
    except av.FFmpegError as error:
        raise InputError(f"{path}: the video file breaks on the way: {error.strerror}") from error


class _RgbConverter:
    """Turns PyAV frames into RGB arrays the right way up, with one conversion context for all frames."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reformatter = None

    def __call__(self, frame: Any) -> np.ndarray:
        """Returns uint8 RGB [H, W, 3], contiguous."""
        from av.video.reformatter import VideoReformatter

        if self.reformatter is None:
            self.reformatter = VideoReformatter()
        pixels = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            pixels = self._display(pixels, np.frombuffer(matrix, dtype=np.int32))
        return np.ascontiguousarray(pixels)

    def _display(self, pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Returns the picture as players show it: turned by quarters, mirrored, or both.

        A pixel (x, y) is shown at (a x + c y, b x + d y) up to a shift, with a, b, c, d = matrix[0, 1, 3, 4].
        """
        matrix = matrix[[0, 1, 3, 4]].astype(np.int64)
        a, b, c, d = np.sign(np.where(100 * abs(matrix) > abs(matrix).max(), matrix, 0)).tolist()
        if not ((a and d and not b and not c) or (b and c and not a and not d)):
            raise InputError(f"{self.path}: turned by no multiple of 90 degrees, which is not supported")
        if b:
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        return pixels[::d, ::a]


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
