"""csv files of videos: `frame_dir,number_of_frames[,label]`, one video a line.

`frame_dir` is a frame folder, a video file, or a video in a packed shard (see `dataset.frames`); a relative path is
relative to the csv's folder. The number of frames of a video file may be left empty (`clip.mp4,,3`). A first line
whose second column has no digit is a header. Blank lines, CRLF, a byte order mark and quoted fields are accepted.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dataset.frames import names_video_file
from utils.errors import InputError

if TYPE_CHECKING:
    import pandas

COLUMNS = ("frame_dir", "number_of_frames", "label")
MAX_DIGITS = 9     # of a number of frames (a year of video) or a label
MAX_COLUMNS = 20  # of a line that is still counted as a wrong line instead of refusing the file


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One csv line: path of the video, number of frames (None: not yet known), class from 0 (None: not labelled).

    `line` of the csv file, 0 if it comes from none, takes no part in comparisons.
    """

    path: str
    num_frames: int | None
    label: int | None = None
    line: int = field(default=0, compare=False)


class BadRow(NamedTuple):
    """A csv line that is not a video: its number, its first column, and the reason."""

    line: int
    path: str
    reason: str


def read_records(csv_path: str | os.PathLike[str], labelled: bool) -> list[VideoRecord]:
    """Returns the csv's videos in file order, with the number of frames of each.

    `labelled`: the third column must be a class number; otherwise it is ignored. Files are only opened to count the
    frames of video files whose number of frames is empty. Raises InputError with `file:line` for the first line that
    is not a video, or whose file cannot be counted.
    """
    records, bad_rows = read_rows(csv_path, labelled, min_frames=1 if labelled else 0)
    if bad_rows:
        raise InputError(f"{csv_path}:{bad_rows[0].line}: {bad_rows[0].reason}")
    unknown = [record for record in records if record.num_frames is None]
    if unknown:
        from dataset.frame_counts import find_counts

        counts = iter(find_counts(csv_path, [(record.line, record.path) for record in unknown]))
        records = [replace(record, num_frames=next(counts)) if record.num_frames is None else record
                   for record in records]
    return records


def read_rows(
    csv_path: str | os.PathLike[str], labelled: bool | None = None, min_frames: int = 0
) -> tuple[list[VideoRecord], list[BadRow]]:
    """Returns (the lines that are videos, those that are not), each in file order; opens no video.

    `labelled`: whether the third column must be a class number; None: if any line has one. Raises InputError if the
    file cannot be read, is not csv, or lists no video.
    """
    table = _read_table(csv_path)
    if table.empty:
        raise InputError(f"{csv_path}: lists no video, expected lines of {','.join(COLUMNS[:2])}[,{COLUMNS[2]}]")
    num_columns = table.notna().sum(axis=1)
    if labelled is None:
        labelled = bool((num_columns > 2).any())
    table = table.fillna("")
    path, frames, label = (table[number] for number in range(3))
    empty_count = (frames == "") & path.map(names_video_file)
    reasons = path.map(lambda _: "")

    def reject(wrong: pandas.Series, values: pandas.Series, reason: Callable[[object], str]) -> None:
        wrong = wrong & (reasons == "")
        reasons[wrong] = values[wrong].map(reason)

    expected = ",".join(COLUMNS) if labelled else f"{','.join(COLUMNS[:2])}[,{COLUMNS[2]}]"
    reject(~num_columns.between(3 if labelled else 2, 3), num_columns,
           lambda num: f"{num} column(s), expected {expected}")
    reject(path == "", path, lambda _: "the path of the video (first column) is empty")
    reject(path.map(lambda text: "\0" in text or len(text.splitlines()) > 1), path,
           lambda text: f"the path of the video (first column) is {text!r}, expected one line without NUL")
    for values, wanted, name in ((frames, ~empty_count, "number of frames (second column)"),
                                 (label, labelled, "label (third column)")):
        reject(wanted & ~values.str.fullmatch("[0-9]+"), values,
               lambda text: f"{name} is {text!r}, expected an integer from 0")
        reject(wanted & (values.str.len() > MAX_DIGITS), values,
               lambda text: f"{name} has {len(text)} digits, expected at most {MAX_DIGITS}")
    good = reasons == ""
    if min_frames:
        reject(good & ~empty_count & (frames.where(good & ~empty_count, "0").astype(int) < min_frames), frames,
               lambda text: f"number of frames (second column) is {int(text)}, expected at least {min_frames}")
        good = reasons == ""
    folder = os.path.dirname(os.path.abspath(csv_path))
    records = [
        # One spelling of a path, so that a video is recognized wherever it is listed.
        VideoRecord(os.path.normpath(os.path.join(folder, path)), int(frames) if frames else None,
                    int(label) if labelled else None, line)
        for line, path, frames, label in zip(table.index[good].tolist(), *(c[good].tolist() for c in (path, frames, label)))
    ]
    return records, [BadRow(*row) for row in zip(table.index[~good].tolist(), path[~good], reasons[~good])]


def write_records(csv_path: str | os.PathLike[str], records: Iterable[VideoRecord], labelled: bool) -> None:
    """Writes a csv with a header, completely or not at all. Paths inside the csv's folder are written relative to it."""
    import pandas

    folder = os.path.join(os.path.dirname(os.path.abspath(csv_path)), "")
    rows = []
    for record in records:
        path = os.path.abspath(record.path)
        path = os.path.relpath(path, folder) if path.startswith(folder) else path
        rows.append((path, "" if record.num_frames is None else record.num_frames, record.label))
    table = pandas.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    text = table.iloc[:, : 3 if labelled else 2].to_csv(index=False, lineterminator="\n")
    part = Path(f"{os.fspath(csv_path)}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", newline="")
        part.replace(csv_path)
    except OSError as error:
        raise InputError(f"{csv_path}: cannot write: {error.strerror}") from error


def usable_for_pretraining(
    records: Sequence[VideoRecord], num_clips: int, clip_frames: int, source: str | os.PathLike[str] = "csv"
) -> tuple[list[VideoRecord], int]:
    """Returns (the videos of more than `num_clips * clip_frames` frames, in order; the number of the others).

    Raises InputError, which begins with `source` (the csv's path), if no video is that long.
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


def _read_table(csv_path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Returns the lines that are neither blank nor a header, by line number: stripped text, missing where absent.

    It has at least three columns.
    """
    import pandas

    try:
        data = Path(csv_path).read_bytes()
    except OSError as error:
        raise InputError(f"{csv_path}: cannot read the csv file: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{csv_path}:{line}: not UTF-8 text") from error
    num_columns = MAX_COLUMNS if '"' in text else max((line.count(",") + 1 for line in text.splitlines()), default=0)
    num_columns = max(3, min(MAX_COLUMNS, num_columns))
    try:
        # The Python engine is strict about quotes, and distinguishes an absent column from an empty one.
        table = pandas.read_csv(io.StringIO(text, newline=""), header=None, names=range(num_columns), index_col=False,
                                dtype=object, keep_default_na=False, skip_blank_lines=False, engine="python")
    except pandas.errors.ParserError as error:
        raise InputError(f"{csv_path}:{_malformed_line(text, num_columns)}: not a csv row: {error}") from error
    table.index += 1
    if '"' in text:  # a quoted field may span lines
        ends = sum(table[name].str.count("\r\n|\r|\n").fillna(0).astype(int) for name in table)
        table.index += ends.cumsum() - ends
    table = table.apply(lambda column: column.str.strip())
    table = table[(table.fillna("") != "").any(axis=1)]
    if len(table):
        count = table.iloc[0, 1]
        if isinstance(count, str) and count and not any(map(str.isdigit, count)):
            return table.iloc[1:]
    return table


def _malformed_line(text: str, max_columns: int) -> int:
    """Returns the number of the line at which the first row begins that is malformed or has more columns."""
    rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for row in rows:
            if len(row) > max_columns:
                break
            line = rows.line_num + 1
    except csv.Error:
        pass
    return line
