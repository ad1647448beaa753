"""Videos named by a csv file, one a line: ``frame_dir,number_of_frames[,label]``.

In place of a frame folder a line may name a video file, and then leave the number of frames empty
(``clip.mp4,,3``), or a folder inside a packed shard (``shard.tar/clip,40,3``).
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.frame_counts import find_counts
from dataset.video_file import names_video_file
from utils.errors import InputError


MAX_DIGITS = 9  # of a number of frames (a year of video) or a label


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: where it is, its number of frames, and its class (0-based; None when not asked for)."""

    path: str
    num_frames: int
    label: int | None = None


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A csv line as it stands; ``num_frames`` is None where a video file's count was left empty."""

    path: str
    num_frames: int | None
    label: int | None


def read_records(csv_path: str | os.PathLike[str], labelled: bool) -> list[VideoRecord]:
    """Returns the csv's videos in file order.

    Two or three columns. With ``labelled`` the third is needed: a class number from 0; without it a third
    column is ignored. The first line is taken as a header when its second field holds no digit. Blank
    lines, CRLF and a byte order mark are allowed. A relative path is relative to the csv's own folder.
    Only video files whose count is empty are looked at here: 240,000 folders would take minutes.

    Raises InputError with ``file:line`` on the first line that breaks the format, or whose file cannot be
    counted.
    """
    folder = os.path.dirname(os.path.abspath(csv_path))
    rows = []
    for line, fields in numbered_rows(csv_path):
        rows.append((line, parse_row(fields, labelled, f"{csv_path}:{line}", folder)))
    if not rows:
        raise InputError(f"{csv_path}: names no video, expected lines of frame_dir,number_of_frames[,label]")
    counts = iter(find_counts(csv_path, [(line, row.path) for line, row in rows if row.num_frames is None]))
    return [
        VideoRecord(row.path, next(counts) if row.num_frames is None else row.num_frames, row.label)
        for _, row in rows
    ]


def parse_row(fields: Sequence[str], labelled: bool, where: str, folder: str) -> CsvRow:
    """Returns the row of these fields; ``where`` (``file:line``) begins the InputError for what breaks it.

    A relative path is relative to ``folder``.
    """
    if len(fields) > 3 or len(fields) < (3 if labelled else 2):
        label_column = ",label" if labelled else "[,label]"
        raise InputError(
            f"{where}: {len(fields)} column(s), expected frame_dir,number_of_frames{label_column}"
        )
    if not fields[0]:
        raise InputError(f"{where}: the frame folder (first column) is empty")
    if "\0" in fields[0] or len(fields[0].splitlines()) > 1:
        raise InputError(f"{where}: the frame folder (first column) is {fields[0]!r}, expected one line without NUL")
    if fields[1] or not names_video_file(fields[0]):
        num_frames = _integer(fields[1], "number of frames (second column)", where)
    else:
        num_frames = None
    if labelled and num_frames == 0:
        raise InputError(f"{where}: number of frames (second column) is 0, expected at least 1")
    label = _integer(fields[2], "label (third column)", where) if labelled else None
    # One spelling of a path, so that a video is recognized wherever it is named.
    return CsvRow(os.path.normpath(os.path.join(folder, fields[0])), num_frames, label)


def usable_for_pretraining(
    records: Sequence[VideoRecord], num_clips: int, clip_frames: int, source: str | os.PathLike[str] = "csv"
) -> tuple[list[VideoRecord], int]:
    """Returns the videos long enough for pretraining, in order, and how many are not.

    A video is usable when it has more than ``num_clips * clip_frames`` frames. None usable raises InputError,
    which begins with ``source``: the csv file's name.
    """
    needed = num_clips * clip_frames
    usable = [record for record in records if record.num_frames > needed]
    if not usable:
        longest = max((record.num_frames for record in records), default=0)
        raise InputError(
            f"{source}: no usable video: all {len(records)} dropped, as pretraining needs more than {needed} "
            f"frames ({num_clips} clips of {clip_frames}) and the longest video has {longest}"
        )
    return usable, len(records) - len(usable)


def numbered_rows(csv_path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number from 1, stripped fields) of each row that is neither blank nor the header."""
    rows = csv.reader(io.StringIO(_read_text(csv_path), newline=""), strict=True)
    line, first = 1, True
    try:
        for row in rows:
            fields = [field.strip() for field in row]
            if any(fields):
                if not (first and _is_header(fields)):
                    yield line, fields
                first = False
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{csv_path}:{line}: not a csv row: {error}") from error


def _read_text(csv_path: str | os.PathLike[str]) -> str:
    try:
        data = Path(csv_path).read_bytes()
    except OSError as error:
        raise InputError(f"{csv_path}: cannot read the csv file: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{csv_path}:{line}: not UTF-8 text") from error


def _is_header(fields: list[str]) -> bool:
    """Whether a first row is a header. A mistyped number, such as ``12x``, has a digit and stays an error."""
    return len(fields) > 1 and fields[1] != "" and not any(character.isdigit() for character in fields[1])


def _integer(field: str, name: str, where: str) -> int:
    if not (field.isascii() and field.isdigit()):
        raise InputError(f"{where}: {name} is {field!r}, expected an integer from 0")
    if len(field) > MAX_DIGITS:
        raise InputError(f"{where}: {name} has {len(field)} digits, expected {MAX_DIGITS} at most")
    return int(field)
