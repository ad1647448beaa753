"""csv files of videos: `frame_dir,number_of_frames[,label]`, one video a line.

`frame_dir` is a frame folder, a video file, or a video in a packed shard (see `dataset.frames`); a relative path is
relative to the csv's folder. The number of frames of a video file may be left empty (`clip.mp4,,3`). A first line
whose second column has no digit is a header. Blank lines, CRLF, a byte order mark and quoted fields are accepted.
"""
from __future__ import annotations

import contextlib
import copy
import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dataset.frames import absolute_path, count_images, locate_video, names_video_file, video_identities
from utils.errors import InputError, name_some
from utils.files import map_in_threads, read_text, write_text

if TYPE_CHECKING:
    import pandas

MAX_DIGITS = 9    # of a number of frames (a year of video) or a label
NUM_SAMPLED = 32  # videos whose number of frames is compared with the disk
FEWEST = 0.9      # of the frames that can be read: fewer in the csv are reported
# Of PackedRecords: begin and size of the path, in bytes; -1 for None.
_ROW = np.dtype([("begin", "i8"), ("size", "i4"), ("num_frames", "i4"), ("label", "i4"), ("line", "i4")])
BLOCK_LINES = 50_000  # of a csv that are in memory as a table
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


class PackedRecords(Sequence[VideoRecord]):
    """Videos as one buffer of paths and one array of numbers: two large objects.

    A list's million small ones take four times as much memory, and a forked worker copies each page whose objects it uses.
    """

    def __init__(self, records: Iterable[VideoRecord] = ()) -> None:
        self.text = bytearray()
        self.rows = np.fromiter(map(self._pack, records), _ROW)

    def _pack(self, record: VideoRecord) -> tuple[int, ...]:
        path = record.path.encode(errors="surrogateescape")
        self.text += path
        num_frames, label = (-1 if number is None else number for number in (record.num_frames, record.label))
        return len(self.text) - len(path), len(path), num_frames, label, record.line

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> VideoRecord:
        begin, size, num_frames, label, line = self.rows[index].item()
        return VideoRecord(self.text[begin : begin + size].decode(errors="surrogateescape"),
                           None if num_frames < 0 else num_frames, None if label < 0 else label, line)

    @property
    def num_frames(self) -> np.ndarray:
        """The number of frames of each video, int32 [N], -1 where it is not yet known; a view."""
        return self.rows["num_frames"]

    def select(self, indices: np.ndarray) -> PackedRecords:
        """Returns these videos, in a copy that shares the paths."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[indices]
        return chosen


def read_records(csv_path: str | os.PathLike[str], labelled: bool, counts: Sequence[int] | None = None) -> list[VideoRecord]:
    """Returns the videos of `read_packed_records` as a list."""
    return list(read_packed_records(csv_path, labelled, counts))


def read_packed_records(csv_path: str | os.PathLike[str], labelled: bool,
                        counts: Sequence[int] | None = None) -> PackedRecords:
    """Returns the csv's videos in file order, with the number of frames of each.

    `labelled`: the third column must be a class number; otherwise it is ignored. Files are only opened to count the
    frames of video files whose number of frames is empty. Raises InputError with `file:line` for the first line that
    is not a video, or whose file cannot be counted. Counts that a sample of the videos contradicts are reported on stderr.

    `counts`: the number of frames of each video where another process has counted them in the same csv.
    """
    bad_rows: list[BadRow] = []
    records = PackedRecords(_read_videos(csv_path, labelled, not labelled, bad_rows))
    if bad_rows:
        raise InputError(f"{csv_path}:{bad_rows[0].line}: {bad_rows[0].reason}")
    if counts is not None and len(counts) == len(records):
        records.num_frames[:] = counts
        return records
    if warning := describe_wrong_counts(csv_path, records):
        print(warning, file=sys.stderr, flush=True)
    unknown = np.flatnonzero(records.num_frames < 0)
    if len(unknown):
        from dataset.frame_counts import find_counts

        records.num_frames[unknown] = find_counts(csv_path, [records[index] for index in unknown])
    return records


def read_rows(csv_path: str | os.PathLike[str], labelled: bool | None = None,
              allow_empty: bool = True) -> tuple[list[VideoRecord], list[BadRow]]:
    """Returns (the lines that are videos, those that are not), each in file order; opens no video.

    `labelled`: whether the third column must be a class number; None: if any line has one. `allow_empty`: accept 0 as
    the number of frames. Raises InputError if the file cannot be read, is not csv, or lists no video.
    """
    if labelled is None:
        labelled = any((table.notna().sum(axis=1) > 2).any() for table in _read_tables(csv_path))
    bad_rows: list[BadRow] = []
    return list(_read_videos(csv_path, labelled, allow_empty, bad_rows)), bad_rows


def _read_videos(csv_path: str | os.PathLike[str], labelled: bool, allow_empty: bool,
                 bad_rows: list[BadRow]) -> Iterator[VideoRecord]:
    """Yields the lines that are videos; appends the others to `bad_rows`."""
    import pandas

    folder = os.path.dirname(absolute_path(csv_path))
    expected = "frame_dir,number_of_frames" + (",label" if labelled else "[,label]")
    for table in _read_tables(csv_path):
        num_columns = table.notna().sum(axis=1)
        path, frames, label = (table[number].fillna("") for number in range(3))
        uncounted = (frames == "") & np.array([not count and names_video_file(name) for count, name in zip(frames, path)])
        reasons = pandas.Series("", table.index, dtype=object)

        def reject(wrong: pandas.Series, values: pandas.Series, reason: Callable[[object], str]) -> None:
            wrong = wrong & (reasons == "")
            reasons[wrong] = values[wrong].map(reason)

        reject(~num_columns.between(3 if labelled else 2, 3), num_columns,
               lambda number: f"{number} column(s), expected {expected}")
        reject(path == "", path, lambda _: "the path of the video (first column) is empty")
        reject(path.map(lambda text: "\0" in text or len(text.splitlines()) > 1), path,
               lambda text: f"the path of the video (first column) is {text!r}, expected one line without NUL")
        for values, given, name in ((frames, ~uncounted, "number of frames (second column)"),
                                    (label, True, "label (third column)"))[:1 + labelled]:
            reject(given & ~values.str.fullmatch("[0-9]+"), values,
                   lambda text: f"{name} is {text!r}, expected an integer from 0")
            reject(given & (values.str.len() > MAX_DIGITS), values,
                   lambda text: f"{name} has {len(text)} digits, expected at most {MAX_DIGITS}")
        if not allow_empty:
            reject(frames.str.fullmatch("0+"), frames,
                   lambda _: "number of frames (second column) is 0, expected at least 1")
        good = reasons == ""
        bad_rows += [BadRow(*row) for row in zip(*(x[~good].tolist() for x in (table.index, path, reasons)))]
        for line, name, count, number in zip(*(x[good].tolist() for x in (table.index, path, frames, label))):
            yield VideoRecord(  # with one spelling of each path, so that a video is recognized wherever it is listed
                absolute_path(os.path.join(folder, name)), int(count) if count else None, int(number) if labelled else None,
                line)


def describe_wrong_counts(csv_path: str | os.PathLike[str], records: PackedRecords) -> str:
    """Returns one line about numbers of frames that a sample of the videos contradicts, "" without any.

    A count is wrong if it is above what can be read, or below `FEWEST` of it, as where the column holds labels.
    """
    given = np.flatnonzero(records.num_frames >= 0)
    places = np.unique(np.linspace(0, len(given) - 1, NUM_SAMPLED, dtype=int)) if len(given) else []
    sample = [records[index] for index in given[places].tolist()]
    counts = map_in_threads(_count_readable, sample)
    wrong = [f"line {record.line}: {record.path}: {record.num_frames}, but {count} can be read"
             for record, count in zip(sample, counts)
             if count is not None and not FEWEST * count <= record.num_frames <= count]
    if not wrong:
        return ""
    return (f"{csv_path}: wrong number of frames (second column) in {len(wrong)} of {len(sample)} videos of a sample: "
            f"{name_some(wrong)}; is it a label? scripts/check_data.py --decode checks every line")


def _count_readable(record: VideoRecord) -> int | None:
    """Returns how many frames of a video can be read, None if it cannot; its own count if a file's header promises that."""
    try:
        if locate_video(record.path).kind != "file":
            return count_images(record.path)
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


def usable_for_pretraining(records: PackedRecords, num_clips: int, clip_frames: int,
                           source: str | os.PathLike[str] = "csv") -> tuple[PackedRecords, int]:
    """Returns (the videos of more than `num_clips * clip_frames` frames, in order; the number of the others).

    Raises InputError, which begins with `source` (the csv's path), if no video is that long.
    """
    needed = num_clips * clip_frames
    usable = np.flatnonzero(records.num_frames > needed)
    if not len(usable):
        longest = records.num_frames.max(initial=0)
        raise InputError(f"{source}: no usable video: all {len(records)} dropped, as pretraining needs more than {needed} "
                         f"frames ({num_clips} clips of {clip_frames}) and the longest video has {longest}")
    return records.select(usable), len(records) - len(usable)


def _read_tables(csv_path: str | os.PathLike[str]) -> Iterator[pandas.DataFrame]:
    """Yields blocks of the lines that are neither blank nor a header, by line number: stripped text, None where absent.

    They have at least three columns. Raises InputError if the file cannot be read, is not csv, or has no such line.
    """
    import pandas

    try:
        with open(csv_path, encoding="utf-8-sig", newline="") as file:
            quoted, most = False, 0  # quoted: then a field may span lines
            for line in file:
                quoted, most = quoted or '"' in line, max(most, line.count(",") + 1)
    except OSError as error:
        raise InputError(f"{csv_path}: cannot read the csv file: {error.strerror}") from error
    except UnicodeDecodeError:
        read_text(csv_path)  # raises InputError, with the line
    num_columns = MAX_COLUMNS if quoted else max(3, min(MAX_COLUMNS, most))
    begun, listed, num_ends = False, False, 0
    with open(csv_path, encoding="utf-8-sig", newline="") as file:
        try:
            # The Python engine is strict about quotes, and distinguishes an absent column from an empty one.
            for table in pandas.read_csv(file, header=None, names=range(num_columns), index_col=False, dtype=object,
                                         keep_default_na=False, skip_blank_lines=False, engine="python",
                                         chunksize=BLOCK_LINES):
                table.index += 1 + num_ends
                if quoted:
                    ends = sum(table[name].fillna("").str.count("\r\n|\r|\n") for name in table)
                    table.index += ends.cumsum() - ends
                    num_ends += ends.sum()
                table = table.apply(lambda column: column.str.strip())
                table = table[(table.fillna("") != "").any(axis=1)]
                if len(table) and not begun:
                    first_count, begun = table.iloc[0, 1], True
                    if isinstance(first_count, str) and first_count and not any(map(str.isdigit, first_count)):
                        table = table.iloc[1:]
                if len(table):
                    listed = True
                    yield table
        except (pandas.errors.ParserError, csv.Error) as error:
            line = _malformed_line(Path(csv_path).read_bytes().decode("utf-8-sig"), num_columns)
            raise InputError(f"{csv_path}:{line}: not a csv row: {error}") from error
    if not listed:
        raise InputError(f"{csv_path}: lists no video, expected lines of frame_dir,number_of_frames[,label]")


def _malformed_line(text: str, max_columns: int) -> int:
    """Returns the number of the line at which the first row begins that is malformed or has more columns."""
    rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    with contextlib.suppress(csv.Error, StopIteration):
        while len(next(rows)) <= max_columns:
            line = rows.line_num + 1
    return line
