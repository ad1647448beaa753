"""Folders that hold one video's frames as numbered pictures: ``image_00001.jpg``, ``image_00002.jpg``, ...

Other prefixes, digit counts, jpg/png and numbering from 0 are found out from the folder itself.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from utils.errors import InputError

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


def read_folder(folder: str, wanted: Sequence[int], num_frames: int) -> Iterator[tuple[str, bytes]]:
    """Yields (file path, file content) of the frames at ``wanted``, which count from 0.

    ``num_frames``, the number of frames that the video is said to have, is only named in errors. Raises
    InputError that names the file when a frame is missing.
    """
    naming = find_naming(folder)
    for index in wanted:
        path = os.path.join(folder, naming.file_name(index))
        try:
            with open(path, "rb", buffering=0) as file:
                yield path, file.read()
        except OSError as error:
            raise InputError(
                f"{path}: cannot read frame {index + 1} of the {num_frames} that the csv gives: "
                f"{error.strerror}"
            ) from error
