"""csv files of videos: `frame_dir,number_of_frames[,label]`, one video a line.

`frame_dir` is a frame folder, a video file, or a video in a packed shard (see `dataset.frames`); a relative path is
relative to the csv's folder. The number of frames of a video file may be left empty (`clip.mp4,,3`). A first line
whose second column has no digit is a header. Blank lines, CRLF, a byte order mark and quoted fields are accepted.
"""
from __future__ import annotations

import copy
import csv
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dataset.frames import absolute_path, find_series, locate_video, names_video_file, video_identities
from utils.errors import InputError, name_some
from utils.files import read_text, write_text

MAX_DIGITS = 9    # of a number of frames (a year of video) or a label
NUM_SAMPLED = 32  # videos whose number of frames is compared with the disk
FEWEST = 0.9      # of the frames that can be read: fewer in the csv are reported


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
    """Videos as one buffer of paths and arrays of numbers: a few large objects.

    A list's million small ones take four times as much memory, and a forked worker copies each page whose objects it uses.
    """

    def __init__(self, records: Iterable[VideoRecord] = ()) -> None:
        self.text, self.begins, self.ends = bytearray(), array("q"), array("q")
        self.num_frames, self.labels, self.lines = (array("i") for _ in range(3))  # -1: None
        for record in records:
            self.begins.append(len(self.text))
            self.text += record.path.encode(errors="surrogateescape")
            self.ends.append(len(self.text))
            self.num_frames.append(-1 if record.num_frames is None else record.num_frames)
            self.labels.append(-1 if record.label is None else record.label)
            self.lines.append(record.line)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> VideoRecord:
        num_frames, label = self.num_frames[index], self.labels[index]
        return VideoRecord(self.text[self.begins[index]:self.ends[index]].decode(errors="surrogateescape"),
                           None if num_frames < 0 else num_frames, None if label < 0 else label, self.lines[index])

    def select(self, indices: np.ndarray) -> PackedRecords:
        """Returns these videos, in a copy that shares the paths."""
        chosen = copy.copy(self)
        for name, values in vars(self).items():
            if isinstance(values, array):
                setattr(chosen, name, array(values.typecode, np.asarray(values)[indices].tobytes()))
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
        records.num_frames = array("i", counts)
        return records
    if warning := describe_wrong_counts(csv_path, records):
        print(warning, file=sys.stderr, flush=True)
    unknown = np.flatnonzero(np.asarray(records.num_frames) < 0).tolist()
    if unknown:
        from dataset.frame_counts import find_counts

        for index, count in zip(unknown, find_counts(csv_path, [records[index] for index in unknown])):
            records.num_frames[index] = count
    return records


def read_rows(csv_path: str | os.PathLike[str], labelled: bool | None = None,
              allow_empty: bool = True) -> tuple[list[VideoRecord], list[BadRow]]:
    """Returns (the lines that are videos, those that are not), each in file order; opens no video.

    `labelled`: whether the third column must be a class number; None: if any line has one. `allow_empty`: accept 0 as
    the number of frames. Raises InputError if the file cannot be read, is not csv, or lists no video.
    """
    if labelled is None:
        labelled = max(len(columns) for _, columns in _read_lines(csv_path)) > 2
    bad_rows: list[BadRow] = []
    return list(_read_videos(csv_path, labelled, allow_empty, bad_rows)), bad_rows


def _read_videos(csv_path: str | os.PathLike[str], labelled: bool, allow_empty: bool,
                 bad_rows: list[BadRow]) -> Iterator[VideoRecord]:
    """Yields the lines that are videos; appends the others to `bad_rows`."""
    folder = os.path.dirname(absolute_path(csv_path))
    for line, columns in _read_lines(csv_path):
        path, frames, label = (*columns, "", "")[:3]
        if reason := _find_mistake(columns, labelled, allow_empty):
            bad_rows.append(BadRow(line, path, reason))
        else:  # with one spelling of each path, so that a video is recognized wherever it is listed
            yield VideoRecord(absolute_path(os.path.join(folder, path)), int(frames) if frames else None,
                              int(label) if labelled else None, line)


def _find_mistake(columns: list[str], labelled: bool, allow_empty: bool) -> str:
    """Returns why a csv line is not a video, "" if it is one."""
    if not 2 + labelled <= len(columns) <= 3:
        expected = "frame_dir,number_of_frames" + (",label" if labelled else "[,label]")
        return f"{len(columns)} column(s), expected {expected}"
    path, frames = columns[:2]
    if not path:
        return "the path of the video (first column) is empty"
    if "\0" in path or len(path.splitlines()) > 1:
        return f"the path of the video (first column) is {path!r}, expected one line without NUL"
    for number, name in enumerate(("number of frames (second column)", "label (third column)")[: 1 + labelled], start=1):
        text = columns[number]
        if number == 1 and not text and names_video_file(path):
            continue
        if not re.fullmatch("[0-9]+", text):
            return f"{name} is {text!r}, expected an integer from 0"
        if len(text) > MAX_DIGITS:
            return f"{name} has {len(text)} digits, expected at most {MAX_DIGITS}"
    if frames and int(frames) == 0 and not allow_empty:
        return "number of frames (second column) is 0, expected at least 1"
    return ""


def describe_wrong_counts(csv_path: str | os.PathLike[str], records: PackedRecords) -> str:
    """Returns one line about numbers of frames that a sample of the videos contradicts, "" without any.

    A count is wrong if it is above what can be read, or below `FEWEST` of it, as where the column holds labels.
    """
    given = np.flatnonzero(np.asarray(records.num_frames) >= 0)
    places = np.unique(np.linspace(0, len(given) - 1, NUM_SAMPLED, dtype=int)) if len(given) else []
    sample = [records[index] for index in given[places].tolist()]
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


def usable_for_pretraining(records: PackedRecords, num_clips: int, clip_frames: int,
                           source: str | os.PathLike[str] = "csv") -> tuple[PackedRecords, int]:
    """Returns (the videos of more than `num_clips * clip_frames` frames, in order; the number of the others).

    Raises InputError, which begins with `source` (the csv's path), if no video is that long.
    """
    needed, num_frames = num_clips * clip_frames, np.asarray(records.num_frames)
    usable = np.flatnonzero(num_frames > needed)
    if not len(usable):
        longest = num_frames.max(initial=0)
        raise InputError(f"{source}: no usable video: all {len(records)} dropped, as pretraining needs more than {needed} "
                         f"frames ({num_clips} clips of {clip_frames}) and the longest video has {longest}")
    return records.select(usable), len(records) - len(usable)


def _read_lines(csv_path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (number, stripped columns) of each line that is neither blank nor a header.

    InputError if the file cannot be read, is not csv, or has no such line.
    """
    line, first, listed = 1, True, False
    try:
        with open(csv_path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                columns = [text.strip() for text in row]
                if any(columns):
                    header = first and len(columns) > 1 and columns[1] and not any(map(str.isdigit, columns[1]))
                    if not header:
                        listed = True
                        yield line, columns
                    first = False
                line = rows.line_num + 1  # a quoted field may span lines
    except OSError as error:
        raise InputError(f"{csv_path}: cannot read the csv file: {error.strerror}") from error
    except UnicodeDecodeError:
        read_text(csv_path)  # raises InputError, with the line
    except csv.Error as error:
        raise InputError(f"{csv_path}:{line}: not a csv row: {error}") from error
    if not listed:
        raise InputError(f"{csv_path}: lists no video, expected lines of frame_dir,number_of_frames[,label]")
