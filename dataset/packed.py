"""Shards: many frame folders in one tar file, read by offset, for disks that limit the number of files.

A shard is a tar file that ``tar tf`` lists: a member ``VIDEO/image_00001.jpg`` for each frame, its bytes
those of the loose file, and as the last member ``frame_index.bin``:

    int64 [F, 2]     offset and size in bytes of each of the F frames, video after video
    _ENTRY [V]       for each of the V videos, in the order of their names' hashes: hash, row of the first frame,
                     number of frames, checksum of these three and of the video's rows
    zeros, _FOOTER   so that the footer ends with the member's last 512-byte block, 1024 zero bytes before
                     the end of the file

A csv names a video of it as ``SHARD.tar/VIDEO``. A shard gets its name when it is whole; one without the
footer, or of another size than the footer has, is refused, so that an interrupted copy is found at the first
look. Checksums find damage to what is read of the index; a picture is as safe as a loose one.

Hashes are evenly spread, so a video's entry lies near hash / 2^64 * V, at most the footer's ``reach`` away:
one read finds it. An open shard costs a process a file descriptor and no memory, and opening one anew is one
more read. All reads give their own offset: a forked process may go on with open shards.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import resource
import struct
import tarfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from utils.errors import InputError

_ENTRY = struct.Struct("<16sQII")
# What the writer knows the shard by, size of the file, checksum of the entries, reach, mark, offset of the rows,
# F, V, checksum of the footer before it. The mark is 40 bytes before the end in every version of the format.
_FOOTER = struct.Struct("<32sQII16sQQII")
_MARK_PLACE = slice(-40, -24)
_MARK = b"packed frames 2\n"
_ANY_MARK = b"packed frames "
_INDEX_NAME = "frame_index.bin"
_BLOCK = tarfile.BLOCKSIZE
_ROW_BYTES = 16
_CHECKSUM_BYTES = 4
_END = bytes(2 * _BLOCK)


def _most_open() -> int:
    """Returns how many shards a process keeps open: a quarter of the files that it may open, at most 512."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 512 if limit == resource.RLIM_INFINITY else min(512, limit // 4)


def read_packed(
    shard: str, video: str, wanted: Sequence[int], num_frames: int
) -> Iterator[tuple[str, bytes]]:
    """Yields (name for errors, picture's bytes) of the video's frames at ``wanted``, which count from 0.

    ``num_frames``, the number of frames that the csv gives, is only named in errors. Raises InputError for a
    shard that is missing, torn or damaged, a video that is not in it, and an index behind the video's last frame.
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
        yield where, opened.read(size, offset)


class Shard:
    """An open shard: its file's descriptor and footer. ``source`` is what its writer knows it by.

    Raises InputError, which begins with the path, for a file that cannot be read or is no whole shard.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{path}: cannot read the shard: {error.strerror}") from error
        weakref.finalize(self, os.close, self.file)
        size = os.fstat(self.file).st_size
        if size < _FOOTER.size + len(_END):
            raise self._torn()
        footer = self.read(_FOOTER.size, size - len(_END) - _FOOTER.size)
        if footer[_MARK_PLACE] != _MARK:
            if footer[_MARK_PLACE].startswith(_ANY_MARK):
                raise InputError(f"{path}: a shard of another version of the format: remove it, and pack it anew")
            raise self._torn()
        (self.source, size_then, self._entries_checksum, self._reach, _, self._rows, self._num_frames,
         self.num_videos, checksum) = _FOOTER.unpack(footer)
        if zlib.crc32(footer[:-_CHECKSUM_BYTES]) != checksum:
            raise self._damaged()
        if size != size_then:
            raise self._torn()
        self._entries = self._rows + self._num_frames * _ROW_BYTES

    def find(self, video: str) -> np.ndarray:
        """Returns int64 [n, 2]: offset and size in bytes of the video's n frames.

        InputError where the video is not in the shard, or the index is not as it was written.
        """
        name_hash = _hash(video)
        near = _near(name_hash, self.num_videos)
        low, high = max(0, near - self._reach), min(self.num_videos, near + self._reach + 1)
        entries = self.read((high - low) * _ENTRY.size, self._entries + low * _ENTRY.size)
        start = entries.find(name_hash)
        if start < 0:
            if zlib.crc32(self.read(self.num_videos * _ENTRY.size, self._entries)) != self._entries_checksum:
                raise self._damaged()
            raise InputError(f"{self.path}: no video {video!r} in the shard, it has {self.num_videos} others")
        if start % _ENTRY.size:
            raise self._damaged()
        entry = entries[start : start + _ENTRY.size]
        _, first, count, checksum = _ENTRY.unpack(entry)
        if first + count > self._num_frames:
            raise self._damaged()
        rows = self.read(count * _ROW_BYTES, self._rows + first * _ROW_BYTES)
        if _checksum(entry[:-_CHECKSUM_BYTES], rows) != checksum:
            raise self._damaged()
        return np.frombuffer(rows, dtype="<i8").reshape(count, 2)

    def read(self, size: int, offset: int) -> bytes:
        """Returns these bytes of the file; InputError if the disk does not give them."""
        try:
            data = os.pread(self.file, size, offset)
        except OSError as error:
            raise InputError(f"{self.path}: cannot read the shard: {error.strerror}") from error
        if len(data) < size:
            raise self._torn()
        return data

    def _torn(self) -> InputError:
        return InputError(f"{self.path}: no whole shard: cut short, or not written by scripts/pack_frames.py")

    def _damaged(self) -> InputError:
        return InputError(f"{self.path}: the shard's index is damaged: copy it again, or remove it and pack it anew")


@functools.lru_cache(maxsize=_most_open())
def open_shard(path: str) -> Shard:
    """Returns the shard, one of the last used ones without opening it anew."""
    return Shard(path)


def write_shard(
    path: str, videos: Iterable[tuple[str, Iterable[tuple[str, bytes]]]], source: bytes = bytes(32)
) -> None:
    """Writes a shard of (video's name, its frames as (file name, bytes)), whole or not at all.

    ``source`` are 32 bytes by which the caller will know it again. The data is on the disk before the file gets
    its name. A file that ends in ``.part`` was killed half way.
    """
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            _write_members(file, videos, source)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _write_members(
    file: io.BufferedWriter, videos: Iterable[tuple[str, Iterable[tuple[str, bytes]]]], source: bytes
) -> None:
    places: list[tuple[int, int]] = []
    firsts: dict[str, int] = {}
    for video, frames in videos:
        assert video not in firsts, video
        firsts[video] = len(places)
        for name, data in frames:
            places.append((_append_member(file, f"{video}/{name}", data), len(data)))
    rows = np.array(places, dtype="<i8").reshape(-1, 2)
    ends = [*firsts.values(), len(places)][1:]
    entries = sorted(_pack_entry(video, first, rows[first:end]) for (video, first), end in zip(firsts.items(), ends))
    reach = max((abs(place - _near(entry, len(entries))) for place, entry in enumerate(entries)), default=0)
    index = b"".join(entries)
    at = file.tell() + _BLOCK  # where the member's data will begin: its name takes one header block
    data = rows.tobytes() + index
    data += bytes(-(len(data) + _FOOTER.size) % _BLOCK)
    size = at + len(data) + _FOOTER.size + len(_END)
    footer = _FOOTER.pack(source, size, zlib.crc32(index), reach, _MARK, at, len(places), len(firsts), 0)
    footer = footer[:-_CHECKSUM_BYTES]
    data += footer + struct.pack("<I", zlib.crc32(footer))
    start = _append_member(file, _INDEX_NAME, data)
    assert start == at, (start, at)
    file.write(_END)
    assert file.tell() == size, (file.tell(), size)


def _pack_entry(video: str, first: int, rows: np.ndarray) -> bytes:
    entry = _ENTRY.pack(_hash(video), first, len(rows), 0)[:-_CHECKSUM_BYTES]
    return entry + struct.pack("<I", _checksum(entry, rows.tobytes()))


def _hash(video: str) -> bytes:
    return hashlib.blake2b(video.encode(), digest_size=16).digest()


def _near(name_hash: bytes, num_videos: int) -> int:
    """Returns about where the hash comes among so many."""
    return int.from_bytes(name_hash[:8], "big") * num_videos >> 64


def _checksum(entry: bytes, rows: bytes) -> int:
    return zlib.crc32(rows, zlib.crc32(entry))


def _append_member(file: io.BufferedWriter, name: str, data: bytes) -> int:
    """Appends a member to the tar file; returns the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.write(info.tobuf(tarfile.PAX_FORMAT))
    start = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))
    return start
