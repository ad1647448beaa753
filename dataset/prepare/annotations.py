"""The official split files of UCF-101, HMDB-51 and Kinetics-400: which videos are in which set, of which class."""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError

# Videos cut from one recording are named alike up to their clip number: v_Archery_g03_c05 is of v_Archery_g03.
GROUP_PATTERN = r"(.+_g\d+)_c\d+"

# (training, test) videos of each split, as the data sets' own pages and papers state them.
OFFICIAL_COUNTS = {
    "ucf101": {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)},
    "hmdb51": {1: (3570, 1530), 2: (3570, 1530), 3: (3570, 1530)},
}


@dataclass(frozen=True, slots=True)
class Annotated:
    """One line of a split file: the video's class and its own name, without folders and suffix."""

    class_name: str
    video: str


@dataclass(frozen=True, slots=True)
class Annotations:
    """``classes`` in the order of their labels (0-based); ``sets``, a list of videos for each set's name, such
    as "train_1"; ``unused`` videos are known to the data set and in none of the sets."""

    classes: list[str]
    sets: dict[str, list[Annotated]]
    unused: list[Annotated]


def read_ucf101(folder: Path, splits: list[int]) -> Annotations:
    """Returns UCF-101's sets train_S and test_S.

    ``classInd.txt`` numbers the classes from 1. ``trainlist0S.txt`` has lines ``Class/v_Class_gNN_cMM.avi
    number``, ``testlist0S.txt`` the same without the number, which is checked where it is. InputError with
    ``file:line`` for what breaks this.
    """
    numbers: dict[str, int] = {}
    for where, line in _lines(folder / "classInd.txt"):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name or name in numbers:
            raise InputError(f"{where}: {line!r}, expected a class number and a class that was not named before")
        numbers[name] = int(number)
    if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
        raise InputError(f"{folder / 'classInd.txt'}: class numbers are not 1, 2, ..., {len(numbers)}")
    sets = {}
    for split in splits:
        for role in ("train", "test"):
            videos = []
            for where, line in _lines(folder / f"{role}list{split:02d}.txt"):
                path, _, number = line.partition(" ")
                class_name, slash, file_name = path.partition("/")
                if not slash or class_name not in numbers:
                    raise InputError(f"{where}: {line!r}, expected Class/video.avi with a class of classInd.txt")
                if number and number.strip() != str(numbers[class_name]):
                    raise InputError(f"{where}: class number {number}, but classInd.txt has "
                                     f"{numbers[class_name]} for {class_name}")
                videos.append(Annotated(class_name, Path(file_name).stem))
            sets[f"{role}_{split}"] = videos
    return Annotations(sorted(numbers, key=numbers.__getitem__), sets, [])


def read_hmdb51(folder: Path, splits: list[int]) -> Annotations:
    """Returns HMDB-51's sets train_S and test_S; classes are numbered in the order of their names.

    ``CLASS_test_splitS.txt`` has lines ``video.avi N``: 1 training, 2 test, 0 unused in this split. InputError
    with ``file:line`` for what breaks this.
    """
    names: dict[int, list[str]] = {}
    sets, unused = {}, []
    for split in splits:
        ending = f"_test_split{split}.txt"
        names[split] = sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
        if not names[split]:
            raise InputError(f"{folder}: no files *{ending}, the official lists of HMDB-51's split {split}")
        if names[split] != names[splits[0]]:
            odd = sorted({*names[split]} ^ {*names[splits[0]]})[0]
            raise InputError(f"{folder}: class {odd} has a list for split {split} or {splits[0]}, not for both")
        by_number: dict[str, list[Annotated]] = {"0": [], "1": [], "2": []}
        for class_name in names[split]:
            for where, line in _lines(folder / f"{class_name}{ending}"):
                file_name, _, number = line.rpartition(" ")
                if number not in by_number or not file_name:
                    raise InputError(f"{where}: {line!r}, expected video.avi and 0, 1 or 2")
                by_number[number].append(Annotated(class_name, Path(file_name.strip()).stem))
        sets[f"train_{split}"], sets[f"test_{split}"] = by_number["1"], by_number["2"]
        unused += by_number["0"]
    return Annotations(names[splits[0]], sets, unused)


def read_kinetics400(folder: Path) -> Annotations:
    """Returns Kinetics-400's sets "train" and "val"; classes are numbered in the order of their names.

    ``train.csv`` and ``val.csv`` (some archives: ``validate.csv``) have columns label, youtube_id, time_start, time_end (s)
    in any order; a video is named ``id_000000_000010``, by its times in six digits. InputError with ``file:line`` for what
    breaks this.
    """
    sets = {}
    for name in ("train", "val"):
        path = folder / f"{name}.csv"
        if name == "val" and not path.exists() and (folder / "validate.csv").exists():
            path = folder / "validate.csv"
        rows = csv.reader(io.StringIO(_text(path), newline=""))
        header = next(rows, [])
        wanted = ("label", "youtube_id", "time_start", "time_end")
        if not {*wanted} <= {*header}:
            raise InputError(f"{path}:1: columns {','.join(header)}, expected {','.join(wanted)},split")
        columns = [header.index(column) for column in wanted]
        videos = []
        for row in filter(None, rows):
            where = f"{path}:{rows.line_num}"
            if len(row) != len(header):
                raise InputError(f"{where}: {len(row)} columns, the header has {len(header)}")
            label, youtube_id, start, end = (row[column] for column in columns)
            try:
                times = f"{int(float(start)):06d}_{int(float(end)):06d}"
            except ValueError as error:
                raise InputError(f"{where}: times {start!r} and {end!r}, expected seconds") from error
            videos.append(Annotated(label, f"{youtube_id}_{times}"))
        sets[name] = videos
    classes = sorted({video.class_name for videos in sets.values() for video in videos})
    return Annotations(classes, sets, [])


def group_finder(pattern: str) -> Callable[[str], str | None]:
    """Returns a function from a video's own name to its group: the pattern's first group; None: no match.

    InputError for a pattern that is no regular expression with a group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group_pattern {pattern}: not a regular expression: {error}") from error
    if compiled.groups < 1:
        raise InputError(f"--group_pattern {pattern}: needs a group in parentheses, as {GROUP_PATTERN} has")

    def find(name: str) -> str | None:
        match = compiled.fullmatch(name)
        return match[1] if match else None

    return find


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the official list: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (``file:line``, stripped line) of each line that is not blank."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()
