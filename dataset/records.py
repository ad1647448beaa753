"""csv files of videos: `frame_dir,number_of_frames[,label]`, one video a line.

`frame_dir` is a frame folder, a video file, or a video in a packed shard (see `dataset.frames`); a relative path is
relative to the csv's folder. The number of frames of a video file may be left empty (`clip.mp4,,3`). A first line
whose second column has no digit is a header. Blank lines, CRLF, a byte order mark and quoted fields are accepted.
"""
from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dataset.frames import absolute_path, find_series, locate_video, names_video_file, video_identities
from utils.errors import InputError, name_some
from utils.files import write_text

if TYPE_CHECKING:
    import pandas

MAX_DIGITS = 9    # of a number of frames (a year of video) or a label
NUM_SAMPLED = 32  # videos whose number of frames is compared with the disk
FEWEST = 0.9      # of the frames that can be read: fewer in the csv are reported
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


def read_records(csv_path: str | os.PathLike[str], labelled: bool, counts: Sequence[int] | None = None) -> list[VideoRecord]:
    """Returns the csv's videos in file order, with the number of frames of each.

    `labelled`: the third column must be a class number; otherwise it is ignored. Files are only opened to count the
    frames of video files whose number of frames is empty. Raises InputError with `file:line` for the first line that
    is not a video, or whose file cannot be counted. Counts that a sample of the videos contradicts are reported on stderr.

    `counts`: the number of frames of each video where another process has counted them in the same csv.
    """
    records, bad_rows = read_rows(csv_path, labelled, allow_empty=not labelled)
    if bad_rows:
        raise InputError(f"{csv_path}:{bad_rows[0].line}: {bad_rows[0].reason}")
    if counts is not None and len(counts) == len(records):
        return [replace(record, num_frames=count) for record, count in zip(records, counts)]
    if warning := describe_wrong_counts(csv_path, records):
        print(warning, file=sys.stderr, flush=True)
    unknown = [record for record in records if record.num_frames is None]
    if not unknown:
        return records
    from dataset.frame_counts import find_counts

    counts = iter(find_counts(csv_path, unknown))
    return [replace(record, num_frames=next(counts)) if record.num_frames is None else record for record in records]


def read_rows(csv_path: str | os.PathLike[str], labelled: bool | None = None,
              allow_empty: bool = True) -> tuple[list[VideoRecord], list[BadRow]]:
    """Returns (the lines that are videos, those that are not), each in file order; opens no video.

    `labelled`: whether the third column must be a class number; None: if any line has one. `allow_empty`: accept 0 as
    the number of frames. Raises InputError if the file cannot be read, is not csv, or lists no video.
    """
    table = _read_table(csv_path)
    num_columns = table.notna().sum(axis=1)
    if labelled is None:
        labelled = bool((num_columns > 2).any())
    path, frames, label = (table[number].fillna("") for number in range(3))
    uncounted = (frames == "") & np.array([not count and names_video_file(name) for count, name in zip(frames, path)])
    reasons = frames.map(lambda _: "")

    def reject(wrong: pandas.Series, values: pandas.Series, reason: Callable[[object], str]) -> None:
        wrong = wrong & (reasons == "")
        reasons[wrong] = values[wrong].map(reason)

    expected = "frame_dir,number_of_frames" + (",label" if labelled else "[,label]")
    reject(~num_columns.between(3 if labelled else 2, 3), num_columns,
           lambda number: f"{number} column(s), expected {expected}")
    reject(path == "", path, lambda _: "the path of the video (first column) is empty")
    reject(path.map(lambda text: "\0" in text or len(text.splitlines()) > 1), path,
           lambda text: f"the path of the video (first column) is {text!r}, expected one line without NUL")
    for values, given, name in ((frames, ~uncounted, "number of frames (second column)"),
                                (label, labelled, "label (third column)")):
        reject(given & ~values.str.fullmatch("[0-9]+"), values,
               lambda text: f"{name} is {text!r}, expected an integer from 0")
        reject(given & (values.str.len() > MAX_DIGITS), values,
               lambda text: f"{name} has {len(text)} digits, expected at most {MAX_DIGITS}")
    reject((not allow_empty) & frames.str.fullmatch("0+"), frames,
           lambda _: "number of frames (second column) is 0, expected at least 1")
    folder, good = os.path.dirname(absolute_path(csv_path)), reasons == ""
    records = [  # with one spelling of each path, so that a video is recognized wherever it is listed
        VideoRecord(absolute_path(os.path.join(folder, path)), int(frames) if frames else None,
                    int(label) if labelled else None, line)
        for line, path, frames, label in zip(*(x[good].tolist() for x in (table.index, path, frames, label)))
    ]
    return records, [BadRow(*row) for row in zip(*(x[~good].tolist() for x in (table.index, path, reasons)))]


def describe_wrong_counts(csv_path: str | os.PathLike[str], records: Sequence[VideoRecord]) -> str:
    """Returns one line about numbers of frames that a sample of the videos contradicts, "" without any.

    A count is wrong if it is above what can be read, or below `FEWEST` of it, as where the column holds labels.
    """
    given = [record for record in records if record.num_frames is not None]
    sample = [given[index] for index in sorted({*np.linspace(0, len(given) - 1, NUM_SAMPLED, dtype=int)})] if given else []
    with ThreadPoolExecutor(NUM_SAMPLED) as pool:
        counts = list(pool.map(_count_readable, sample))
    wrong = [f"line {record.line}: {record.path}: {record.num_frames}, but {count} can be read"
             for record, count in zip(sample, counts)
             if count is not None and not FEWEST * count <= record.num_frames <= count]
    if not wrong:
        return ""
    return (f"{csv_path}: wrong number of frames (second column) in {len(wrong)} of {len(sample)} videos of a sample: "
            f"{name_some(wrong)}; is it a label? scripts/check_data.py --decode checks every line")


def _count_readable(record: VideoRecord) -> int | None:
    """Returns how many frames of a video can be read, None if it cannot; its own count if a file's header promises that."""
    stored = locate_video(record.path)
    try:
        if stored.kind == "folder":
            return find_series(record.path).usable
        if stored.kind == "packed":
            from dataset.packed import open_shard

            return len(open_shard(stored.path).find(stored.inner))
        from dataset.video_file import count_frames, promised_frames

        promised = promised_frames(record.path)
        if promised and FEWEST * promised <= record.num_frames <= promised / FEWEST:
            return record.num_frames
        return count_frames(record.path)
    except InputError:  # reported when the video is read
        return None


def write_records(csv_path: str | os.PathLike[str], records: Sequence[VideoRecord], labelled: bool) -> None:
    """Writes a csv with a header, completely or not at all. Paths inside the csv's folder are written relative to it."""
    import pandas

    folder = os.path.join(os.path.dirname(absolute_path(csv_path)), "")
    table = pandas.DataFrame({
        "frame_dir": [absolute_path(record.path).removeprefix(folder) for record in records],
        "number_of_frames": pandas.array([record.num_frames for record in records], dtype="Int64"),
    })
    if labelled:
        table["label"] = pandas.array([record.label for record in records], dtype="Int64")
    write_text(csv_path, table.to_csv(index=False, lineterminator="\n"))


def shared_videos(train: Sequence[VideoRecord], test: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Returns the test videos that are training videos too, by whatever path."""
    of_train, of_test = (video_identities([record.path for record in records]) for records in (train, test))
    known = {*of_train}
    return [record for record, identity in zip(test, of_test) if identity in known]


def usable_for_pretraining(records: Sequence[VideoRecord], num_clips: int, clip_frames: int,
                           source: str | os.PathLike[str] = "csv") -> tuple[list[VideoRecord], int]:
    """Returns (the videos of more than `num_clips * clip_frames` frames, in order; the number of the others).

    Raises InputError, which begins with `source` (the csv's path), if no video is that long.
    """
    needed = num_clips * clip_frames
    usable = [record for record in records if record.num_frames > needed]
    if not usable:
        longest = max((record.num_frames for record in records), default=0)
        raise InputError(f"{source}: no usable video: all {len(records)} dropped, as pretraining needs more than {needed} "
                         f"frames ({num_clips} clips of {clip_frames}) and the longest video has {longest}")
    return usable, len(records) - len(usable)


def _read_table(csv_path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Returns the lines that are neither blank nor a header, by line number: stripped text, None where absent.

    It has at least three columns. Raises InputError if the file cannot be read, is not csv, or has no such line.
    """
    import pandas

    try:
        data = Path(csv_path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{csv_path}: cannot read the csv file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{csv_path}:{line}: not UTF-8 text") from error
    quoted = '"' in text  # then a field may span lines
    most = max((line.count(",") + 1 for line in io.StringIO(text, newline="")), default=0)
    num_columns = MAX_COLUMNS if quoted else max(3, min(MAX_COLUMNS, most))
    try:
        # The Python engine is strict about quotes, and distinguishes an absent column from an empty one.
        table = pandas.read_csv(io.StringIO(text, newline=""), header=None, names=range(num_columns), index_col=False,
                                dtype=object, keep_default_na=False, skip_blank_lines=False, engine="python")
    except pandas.errors.ParserError as error:
        raise InputError(f"{csv_path}:{_malformed_line(text, num_columns)}: not a csv row: {error}") from error
    table.index += 1
    if quoted:
        ends = sum(table[name].fillna("").str.count("\r\n|\r|\n") for name in table)
        table.index += ends.cumsum() - ends
    table = table.apply(lambda column: column.str.strip())
    table = table[(table.fillna("") != "").any(axis=1)]
    if len(table):
        first_count = table.iloc[0, 1]
        if isinstance(first_count, str) and first_count and not any(map(str.isdigit, first_count)):
            table = table.iloc[1:]
    if table.empty:
        raise InputError(f"{csv_path}: lists no video, expected lines of frame_dir,number_of_frames[,label]")
    return table


def _malformed_line(text: str, max_columns: int) -> int:
    """Returns the number of the line at which the first row begins that is malformed or has more columns."""
    rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    with contextlib.suppress(csv.Error, StopIteration):
        while len(next(rows)) <= max_columns:
            line = rows.line_num + 1
    return line
