"""Frames of video files, decoded by PyAV (FFmpeg) as uint8 RGB [H, W, 3].

A file's frames are those that its decoder gives from start to end, in presentation order and with the file's rotation
applied; the index of a frame is its rank among them. `iterate_frames` yields all of them, `read_video` some, pixel for
pixel the same.

Random access uses the times and keyframes of the file's packets, read without decoding: decoding starts at the last
keyframe at or before a wanted frame, and the time of each frame is compared with the index. Where packets are no
reliable index (no times; packets before the first keyframe or to be discarded; codecs whose packets may hold no frame,
such as mpeg4 of Xvid and vp8), frames are counted by decoding from the start. A process keeps the indexes of long
videos only; nothing else stays open between calls.
"""
from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from utils.errors import InputError, os_error_as_input

CUT_SAMPLE = 16  # frames that `find_cut` looks up
FEWER = 0.9  # of the frames that the header promises: a few less are usual
# Codecs of which each packet gives exactly one frame, by the decoder that PyAV picks.
_ONE_FRAME_PER_PACKET = frozenset("h264 hevc vp9 libvpx-vp9 av1 libdav1d mjpeg".split())
_ZEROS = bytes(16)     # with which no frame of these codecs begins
_LONG = 1000           # frames of a video whose index is kept
_MOST_KEPT = 2_000_000  # frames of all kept indexes: 16 MB, 48 if each is a keyframe


class _PacketIndex(NamedTuple):
    """Frames according to the packets."""

    times: np.ndarray      # [n] in units of the stream, ascending
    starts: np.ndarray     # [k] ranks of the frames at which decoding may start, ascending
    start_dts: np.ndarray  # [k] their decoding times, or presentation times in formats without these


class _OpenVideo(NamedTuple):
    path: str
    container: Any
    stream: Any
    reformatter: Any  # one conversion context for all frames


class _Unindexed(Exception):
    """The decoder's frames are not those of the packet index."""


_kept_indexes: dict[tuple[str, int, int], _PacketIndex] = {}  # by path, time of modification in ns, and size in bytes


def iterate_frames(path: str) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time in s, uint8 RGB [H, W, 3]) of every frame in presentation order.

    Times strictly increase, from any start: a frame without a time, or with one that does not increase, comes one
    average frame interval after the previous one. Raises InputError, which begins with the path, for a file that is not
    a video, has no frames, or breaks while it is decoded.
    """
    with _open_video(path) as video:
        interval = float(1 / (video.stream.average_rate or 25))
        previous = None
        for frame in _decode(video):
            time = frame.time
            if previous is not None and (time is None or time <= previous):
                time = previous + interval
            previous = time or 0.0
            yield previous, _to_rgb(frame, video)
        if previous is None:
            raise InputError(f"{path}: no frame in the video file")


def count_frames(path: str) -> int:
    """Returns how many frames `iterate_frames` yields, from the packets if possible (fewer decode if it is damaged)."""
    with _open_video(path) as video:
        index = _read_index(video)
        if index is not None:
            return len(index.times)
    with _open_video(path) as video:
        count = sum(1 for _ in _decode(video))
    if count == 0:
        raise InputError(f"{path}: no frame in the video file")
    return count


def read_video(path: str, wanted: Sequence[int], num_frames: int) -> Iterator[np.ndarray]:
    """Yields the frames `wanted` (ascending, from 0), uint8 RGB [H, W, 3], equal to those of `iterate_frames`.

    Decodes each group of pictures at most once. `num_frames` (of the csv) is used in error messages only. Raises
    InputError like `iterate_frames`, and for an index past the last frame.
    """
    done = 0
    with _open_video(path) as video:
        index = _find_index(video)
        if index is not None and wanted[-1] < len(index.times):
            with contextlib.suppress(_Unindexed):  # then from the start of the file, below
                for frame in _seek_and_decode(video, index, wanted):
                    yield _to_rgb(frame, video)
                    done += 1
    if done < len(wanted):
        with _open_video(path) as video:
            rank = -1
            for rank, frame in enumerate(_decode(video)):
                if rank == wanted[done]:
                    yield _to_rgb(frame, video)
                    done += 1
                    if done == len(wanted):
                        return
        raise InputError(f"{path}: frame {wanted[done] + 1} of the {num_frames} given in the csv is missing, "
                         f"the video file has {rank + 1}")


def promised_frames(path: str) -> int | None:
    """Returns the approximate number of frames by the file's header: as stated, duration times rate, or None.

    Raises InputError for a file that cannot be opened as a video.
    """
    with _open_video(path) as video:
        stream = video.stream
        if stream.frames:
            return stream.frames
        duration = stream.duration * stream.time_base if stream.duration else None
        if duration is None and video.container.duration:
            duration = video.container.duration / av.time_base
        return round(duration * stream.average_rate) if duration and stream.average_rate else None


def find_cut(path: str) -> str:
    """Returns what shows, without decoding, that a file is not whole, else "".

    `CUT_SAMPLE` frames of its index are looked up: a partial download has zeros there, a truncated file ends before. Files
    without an index of frames, such as mkv, webm and ts, tell nothing. Raises InputError like `promised_frames`.
    """
    with _open_video(path) as video, open(path, "rb") as file:
        index, length = video.stream.index_entries, os.fstat(file.fileno()).st_size
        for number in sorted({*np.linspace(0, len(index) - 1, CUT_SAMPLE, dtype=int).tolist()}) if len(index) else ():
            start, size = index[number].pos, index[number].size
            if start + size > length:
                return f"frame {number + 1} of {len(index)} is behind the end of the file: cut short"
            file.seek(start)
            if size >= len(_ZEROS) == len(data := file.read(len(_ZEROS))) and data == _ZEROS and (
                    video.stream.codec_context.name in _ONE_FRAME_PER_PACKET):  # in others zeros may be a frame
                return f"frame {number + 1} of {len(index)} is zeros: a partial download"
    return ""


def shortage(frames: int, promised: int | None) -> str:
    """Returns a note on a video that gave clearly fewer frames than its header promises, else ""."""
    if promised is None or frames >= FEWER * promised:
        return ""
    return f"decodes to {frames} frames, its header promises about {promised}: perhaps cut short"


@contextlib.contextmanager
def _open_video(path: str) -> Iterator[_OpenVideo]:
    """Opens a file and its best video stream, and closes it at the end."""
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")  # without "file:" a colon may end a protocol
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot open the video file: {error.strerror}") from error
    with container:
        stream = container.streams.best("video")
        if stream is not None and stream.disposition & av.stream.Disposition.attached_pic:  # FFmpeg's last choice
            raise InputError(f"{path}: no video in the file, only sound with a cover image")
        if stream is None or stream.codec_context is None:
            raise InputError(f"{path}: no video in the file that can be decoded")
        stream.codec_context.thread_count = 1  # a DataLoader has a worker for each core
        yield _OpenVideo(path, container, stream, VideoReformatter())


def _decode(video: _OpenVideo) -> Iterator[Any]:
    """Yields the PyAV frames from the container's position to its end."""
    try:
        yield from video.container.decode(video.stream)
    except av.FFmpegError as error:
        raise _broken(video, error) from error


def _broken(video: _OpenVideo, error: av.FFmpegError) -> InputError:
    return InputError(f"{video.path}: the video file breaks on the way: {error.strerror}")


def _find_index(video: _OpenVideo) -> _PacketIndex | None:
    """Returns the kept index of an open file, or reads it; None if its packets are not reliable."""
    with os_error_as_input(f"{video.path}: cannot read the video file"):
        status = os.stat(video.path)
    key = video.path, status.st_mtime_ns, status.st_size
    index = _kept_indexes.get(key) or _read_index(video)
    if index is not None and len(index.times) >= _LONG and key not in _kept_indexes:
        _kept_indexes[key] = index
        while sum(len(kept.times) for kept in _kept_indexes.values()) > _MOST_KEPT:
            del _kept_indexes[next(iter(_kept_indexes))]  # the oldest
    return index


def _read_index(video: _OpenVideo) -> _PacketIndex | None:
    """Returns the index of an open file, which is read to its end; None if its packets are not reliable."""
    if video.stream.codec_context.name not in _ONE_FRAME_PER_PACKET:
        return None
    times, decoding_times, keys = [], [], []
    try:
        for packet in video.container.demux(video.stream):
            if packet.size == 0:  # marks the end
                continue
            if packet.pts is None or packet.is_corrupt or packet.is_discard:
                return None
            times.append(packet.pts)
            decoding_times.append(packet.pts if packet.dts is None else packet.dts)
            keys.append(packet.is_keyframe)
    except av.FFmpegError as error:
        raise _broken(video, error) from error
    order = np.argsort(times, kind="stable")  # [n]: position in the file of each frame's packet
    ranked = np.array(times, dtype=np.int64)[order]
    if not len(order) or order[0] != 0 or not keys[0] or not (np.diff(ranked) > 0).all():
        return None
    first_from_here = np.minimum.accumulate(order[::-1])[::-1]
    starts = np.flatnonzero(np.array(keys)[order] & (first_from_here == order))
    return _PacketIndex(ranked, starts, np.array(decoding_times, dtype=np.int64)[order[starts]])


def _seek_and_decode(video: _OpenVideo, index: _PacketIndex, wanted: Sequence[int]) -> Iterator[Any]:
    """Yields the PyAV frames `wanted`; raises _Unindexed if the decoder contradicts the index."""
    frames, following = iter(()), len(index.times)  # of the running decoder: its frames, rank of the next one
    for rank in wanted:
        number = int(np.searchsorted(index.starts, rank, side="right")) - 1
        start = int(index.starts[number])
        if not start <= following <= rank:
            frames = _decode_from(video, int(index.times[start]), int(index.start_dts[number]))
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


def _decode_from(video: _OpenVideo, time: int, decoding_time: int) -> Iterator[Any]:
    """Yields the PyAV frames from the keyframe with these times on; raises _Unindexed if it is not found."""
    for target in (decoding_time, time):  # formats differ in which of the two they seek
        try:
            video.container.seek(target, stream=video.stream)
            packets = video.container.demux(video.stream)
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
        raise _broken(video, error) from error


def _to_rgb(frame: Any, video: _OpenVideo) -> np.ndarray:
    """Returns a PyAV frame as uint8 RGB [H, W, 3], contiguous, rotated and mirrored as players show it.

    The display matrix shows a pixel (x, y) at (a x + c y, b x + d y) up to a shift, a, b, c, d = matrix[0, 1, 3, 4].
    """
    pixels = video.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        matrix = np.frombuffer(matrix, dtype=np.int32)[[0, 1, 3, 4]].astype(np.int64)
        a, b, c, d = np.sign(np.where(100 * abs(matrix) > abs(matrix).max(), matrix, 0)).tolist()
        if not ((a and d and not b and not c) or (b and c and not a and not d)):
            raise InputError(f"{video.path}: rotated by an angle that is no multiple of 90 degrees: not supported")
        if b:
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        pixels = pixels[::d, ::a]
    return np.ascontiguousarray(pixels)
