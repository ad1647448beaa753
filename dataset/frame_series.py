"""What the file names of a frame folder tell: how many frames there are, and whether one is missing."""
from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from dataset.frame_folder import FrameNaming
from dataset.prepare.frame_marker import MARKER
from utils.errors import InputError

_PICTURE = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]+)(?P<suffix>\.(?:jpg|jpeg|png))", re.IGNORECASE)
_USUAL = FrameNaming()
_USUAL_NAMES = [_USUAL.file_name(index) for index in range(9999)]


@dataclass(frozen=True, slots=True)
class Series:
    """The numbered pictures of a folder: ``count`` of them, of which the first ``usable`` follow without a gap.

    ``missing`` numbers lie between the first and the last.
    """

    naming: FrameNaming
    count: int
    usable: int
    missing: int


def find_series(folder: str, names: Collection[str]) -> Series:
    """Returns the series that the folder's file names make; its naming is the one that reading finds.

    Raises InputError, which begins with the folder, when there are no frames or it is open which files are.
    """
    ordered = sorted(name for name in names if name != MARKER)
    if ordered and ordered == _USUAL_NAMES[: len(ordered)]:  # a 200,000-video check must not parse each name
        return Series(_USUAL, len(ordered), len(ordered), 0)
    found: dict[tuple[str, str], list[str]] = {}
    for match in filter(None, map(_PICTURE.fullmatch, ordered)):
        found.setdefault((match["prefix"], match["suffix"]), []).append(match["number"])
    usual = found.get((_USUAL.prefix, _USUAL.suffix), [])
    if "00000" in usual or "00001" in usual:
        prefix, suffix, digits = _USUAL.prefix, _USUAL.suffix, _USUAL.digits
        texts = [text for text in usual if text == f"{int(text):0{digits}d}"]
    elif not found:
        raise InputError(f"{folder}: no frames in it, expected files such as {_USUAL.file_name(0)}")
    elif len(found) > 1:
        kinds = ", ".join(sorted(f"{prefix}*{suffix}" for prefix, suffix in found))
        raise InputError(f"{folder}: several series of frames ({kinds}), expected one like {_USUAL.file_name(0)}")
    else:
        [((prefix, suffix), texts)] = found.items()
        digits = min(map(len, texts))
        if any(text != f"{int(text):0{digits}d}" for text in texts):
            raise InputError(f"{folder}: frame numbers of different digit counts ({min(texts)}, {max(texts)})")
    numbers = set(map(int, texts))
    naming = FrameNaming(prefix, digits, suffix, min(numbers))
    if naming.first > 1:
        raise InputError(f"{folder}: the first frame is {naming.file_name(0)}, expected number 0 or 1")
    usable = 1
    while naming.first + usable in numbers:
        usable += 1
    return Series(naming, len(numbers), usable, max(numbers) - naming.first + 1 - len(numbers))


def list_series(folder: str) -> Series:
    """Returns the folder's series after one look at its file names. Raises InputError as ``find_series``."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot read the frame folder: {error.strerror}") from error
    return find_series(folder, names)
