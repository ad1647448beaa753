"""Every frame of a video decoded, to find those that are empty, broken, or decode to something damaged."""
from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dataset.frames import decode_image, find_series, is_video_file, split_packed_path
from dataset.packed import open_shard, read_packed
from dataset.video_file import iterate_frames
from utils.errors import InputError


@dataclass(slots=True)
class Decoded:
    """What decoding a video told: for each kind of fault the first one and their number; frames of a video file."""

    first: dict[str, str] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)
    num_frames: int | None = None

    def add(self, kind: str, detail: str) -> None:
        """Adds a fault of this kind."""
        self.first.setdefault(kind, detail)
        self.number[kind] = self.number.get(kind, 0) + 1

    def faults(self) -> list[tuple[str, str]]:
        """Returns (kind, detail) of each kind found."""
        return [(kind, detail if self.number[kind] == 1 else f"{detail}; {self.number[kind]} such pictures")
                for kind, detail in self.first.items()]


def decode_video(path: str) -> Decoded:
    """Returns what decoding all frames of a frame folder, a video in a shard, or a video file told.

    To be run in a process of its own, whose stderr it takes: libjpeg says only there that a picture's data was
    damaged, and gives grey or shifted pixels in its place.
    """
    decoded = Decoded()
    packed = split_packed_path(path)
    try:
        if packed:
            count = len(open_shard(packed[0]).find(packed[1]))
            _decode_pictures(decoded, ((where.removeprefix(f"{path}: "), lambda data=data: data)
                                       for where, data in read_packed(*packed, range(count), count)))
        elif is_video_file(path):
            _decode_file(decoded, path)
        else:
            series = find_series(path)
            names = map(series.naming.file_name, range(series.usable))
            _decode_pictures(decoded, ((name, lambda name=name: _read(os.path.join(path, name))) for name in names))
    except InputError as error:
        decoded.add("unreadable", str(error).removeprefix(f"{path}: "))
    return decoded


def _decode_pictures(decoded: Decoded, pictures: Iterator[tuple[str, Callable[[], bytes]]]) -> None:
    first_size = None
    with _captured_stderr() as complaint:
        for name, read in pictures:
            try:
                data = read()
            except OSError as error:
                decoded.add("broken picture", f"{name}: cannot read: {error.strerror}")
                continue
            if not data:
                decoded.add("empty file", f"{name} has 0 bytes")
                continue
            try:
                picture = decode_image(data, name)
            except InputError as error:
                complaint()
                decoded.add("broken picture", str(error))
                continue
            said = complaint()
            if said:
                decoded.add("broken picture", f"{name}: {said}")
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            first_size = first_size or size
            if size != first_size:
                decoded.add("picture sizes", f"{name} is {size}, the first {first_size}")


def _decode_file(decoded: Decoded, path: str) -> None:
    count, first_size = 0, None
    try:
        for count, (_, frame) in enumerate(iterate_frames(path), start=1):
            size = f"{frame.shape[1]}x{frame.shape[0]}"
            first_size = first_size or size
            if size != first_size:
                decoded.add("picture sizes", f"frame {count} is {size}, the first {first_size}")
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        decoded.add("broken video", f"{reason} (after {count} frames)" if count else reason)
        return
    decoded.num_frames = count


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Gives a function that returns the first line written to stderr since it was called last, "" for none."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)

        def complaint() -> str:
            size = os.fstat(log.fileno()).st_size
            if not size:
                return ""
            text = os.pread(log.fileno(), size, 0).decode(errors="replace")
            os.ftruncate(log.fileno(), 0)
            os.lseek(log.fileno(), 0, os.SEEK_SET)
            return text.strip().partition("\n")[0]

        try:
            yield complaint
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
