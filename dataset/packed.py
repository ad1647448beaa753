"""Shards: many frame folders in one tar file, read by offset, for disks that limit the number of files.

A shard is a tar file that ``tar tf`` lists: a member ``VIDEO/image_00001.jpg`` for each frame, its bytes
those of the loose file, and as the last member ``frame_index.bin``:

    int64 [F, 2]     offset and size in bytes of each of the F frames, video after video
    JSON             {VIDEO: [row of its first frame, number of its frames]}
    zeros, _FOOTER   so that the footer ends with the member's last 512-byte block, 1024 zero bytes before
                     the end of the file

A csv names a video of it as ``SHARD.tar/VIDEO``. A shard gets its name when it is whole, and one without the
footer is refused, so that an interrupted copy is found at the first look.

A process keeps the few shards that it used last open, and of each the videos' names; of the table it reads a
video's rows at a time. All reads give their own offset, so a forked process may go on with open shards.
"""
from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import struct
import tarfile
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from utils.errors import InputError

_REFERENCE = re.compile(r"(?P<shard>.+?\.tar)/(?P<video>.+)")
_FOOTER = struct.Struct("<16sQQQ")  # mark, offset of the table, offset of the JSON, its bytes
_MARK = b"packed frames 1\n"
_INDEX_NAME = "frame_index.bin"
_BLOCK = tarfile.BLOCKSIZE
_ROW_BYTES = 16
_END = bytes(2 * _BLOCK)
_MAX_OPEN_SHARDS = 64


def split_reference(path: str) -> tuple[str, str] | None:
    """Returns (shard's path, video's name) of ``SHARD.tar/VIDEO``; None for other paths."""
    match = _REFERENCE.fullmatch(path)
    return (match["shard"], match["video"]) if match and not os.path.isdir(match["shard"]) else None


def read_packed(
    shard: str, video: str, wanted: Sequence[int], num_frames: int
) -> Iterator[tuple[str, bytes]]:
    """Yields (name for errors, picture's bytes) of the video's frames at ``wanted``, which count from 0.

    ``num_frames``, the number of frames that the csv gives, is only named in errors. Raises InputError for a
    shard that is missing or torn, a video that is not in it, and an index behind the video's last frame.
    """
    opened = open_shard(shard)
    places = opened.find(video)
    for index in wanted:
        where = f"{shard}/{video}: frame {index + 1}"
        if index >= len(places):
            raise InputError(
                f"{where} of the {num_frames} that the csv gives is asked for, the shard has {len(places)}"
            )
        offset, size = places[index].tolist()
        yield where, os.pread(opened.file, size, offset)


class Shard:
    """An open shard: its file's descriptor, and each video's row of first frame and number of frames."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{path}: cannot read the shard: {error.strerror}") from error
        weakref.finalize(self, os.close, self.file)
        end = max(0, os.fstat(self.file).st_size - len(_END))
        footer = os.pread(self.file, _FOOTER.size, max(0, end - _FOOTER.size))
        if len(footer) < _FOOTER.size or not footer.startswith(_MARK):
            raise InputError(f"{path}: no whole shard: cut short, or not written by scripts/pack_frames.py")
        _, self.table, names, names_bytes = _FOOTER.unpack(footer)
        self.videos: dict[str, list[int]] = json.loads(os.pread(self.file, names_bytes, names))

    def find(self, video: str) -> np.ndarray:
        """Returns int64 [n, 2]: offset and size in bytes of the video's n frames; InputError if not there."""
        if video not in self.videos:
            raise InputError(
                f"{self.path}: no video {video!r} in the shard, it has {len(self.videos)} others"
            )
        first, count = self.videos[video]
        rows = os.pread(self.file, count * _ROW_BYTES, self.table + first * _ROW_BYTES)
        return np.frombuffer(rows, dtype="<i8").reshape(count, 2)


@functools.lru_cache(maxsize=_MAX_OPEN_SHARDS)
def open_shard(path: str) -> Shard:
    """Returns the shard, one of the last used ones without opening it anew."""
    return Shard(path)


def write_shard(path: str, videos: Iterable[tuple[str, Iterable[tuple[str, bytes]]]]) -> None:
    """Writes a shard of (video's name, its frames as (file name, bytes)), whole or not at all.

    The data is on the disk before the file gets its name. A file that ends in ``.part`` was killed half way.
    """
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            _write_members(file, videos)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _write_members(
    file: io.BufferedWriter, videos: Iterable[tuple[str, Iterable[tuple[str, bytes]]]]
) -> None:
    places: list[tuple[int, int]] = []
    names: dict[str, list[int]] = {}
    for video, frames in videos:
        assert video not in names, video
        first = len(places)
        for name, data in frames:
            places.append((_append_member(file, f"{video}/{name}", data), len(data)))
        names[video] = [first, len(places) - first]
    table = np.array(places, dtype="<i8").reshape(-1, 2).tobytes()
    text = json.dumps(names, ensure_ascii=False).encode()
    at = file.tell() + _BLOCK  # where the member's data will begin: its name takes one header block
    footer = _FOOTER.pack(_MARK, at, at + len(table), len(text))
    fill = bytes(-(len(table) + len(text) + len(footer)) % _BLOCK)
    start = _append_member(file, _INDEX_NAME, table + text + fill + footer)
    assert start == at, (start, at)
    file.write(_END)


def _append_member(file: io.BufferedWriter, name: str, data: bytes) -> int:
    """Appends a member to the tar file; returns the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.write(info.tobuf(tarfile.PAX_FORMAT))
    start = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))
    return start
