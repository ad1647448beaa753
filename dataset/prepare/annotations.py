"""Official split files of UCF-101, HMDB-51 and Kinetics-400: the videos and classes of each set."""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils.cli import compile_group_pattern
from utils.errors import InputError

GROUP_PATTERN = r"(.+_g\d+)_c\d+"  # clips cut from one recording: v_Archery_g03_c05 is of the group v_Archery_g03

# (training, test) videos of each split, as the data sets' own pages and papers state them.
OFFICIAL_COUNTS = {"ucf101": {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)},
                   "hmdb51": dict.fromkeys((1, 2, 3), (3570, 1530))}


class ListedVideo(NamedTuple):
    """A video in an official list: its class, and its name without folders and suffix."""

    class_name: str
    name: str


class OfficialLists(NamedTuple):
    """Classes in the order of their labels (from 0), videos of each set ("train_1"), and videos in no set."""

    classes: list[str]
    sets: dict[str, list[ListedVideo]]
    unused: list[ListedVideo]


def read_ucf101(folder: Path, splits: list[int]) -> OfficialLists:
    """Returns the sets train_S and test_S of UCF-101; labels follow `classInd.txt`, which numbers classes from 1.

    `trainlist0S.txt` has lines `Class/v_Class_gNN_cMM.avi number`, `testlist0S.txt` the same without number. InputError
    with `file:line` for other lines, unknown classes and a number that is not the class's.
    """
    numbers: dict[str, int] = {}
    for where, (number, name) in match_lines(folder / "classInd.txt", r"(\d+) +(.+)", "a class number and a class"):
        if name in numbers:
            raise InputError(f"{where}: '{number} {name}', but {name} has number {numbers[name]} already")
        numbers[name] = int(number)
    if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
        raise InputError(f"{folder / 'classInd.txt'}: class numbers are not 1, 2, ..., {len(numbers)}")
    sets: dict[str, list[ListedVideo]] = {f"{role}_{split}": [] for split in splits for role in ("train", "test")}
    for set_name, videos in sets.items():
        path = folder / f"{set_name.replace('_', 'list0')}.txt"
        for where, (name, file_name, number) in match_lines(path, r"([^/]+)/(\S+)(?: +(\d+))?", "Class/video.avi"):
            if name not in numbers:
                raise InputError(f"{where}: '{name}/{file_name}', but {name} is no class of classInd.txt")
            if number and int(number) != numbers[name]:
                raise InputError(f"{where}: class number {number}, but classInd.txt has {numbers[name]} for {name}")
            videos.append(ListedVideo(name, Path(file_name).stem))
    return OfficialLists(sorted(numbers, key=numbers.__getitem__), sets, [])


def read_hmdb51(folder: Path, splits: list[int]) -> OfficialLists:
    """Returns the sets train_S and test_S of HMDB-51; labels follow the classes' names in alphabetical order.

    `CLASS_test_splitS.txt` has lines `video.avi N`: 1 training, 2 test, 0 unused. InputError with `file:line` for other
    lines, and for a class without a list for one of the splits.
    """
    classes: list[str] = []
    sets, unused = {}, []
    for split in splits:
        ending = f"_test_split{split}.txt"
        of_split = sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
        if not of_split:
            raise InputError(f"{folder}: no files *{ending}, the official lists of HMDB-51's split {split}")
        classes = classes or of_split
        if odd := sorted({*of_split} ^ {*classes}):
            raise InputError(f"{folder}: class {odd[0]} has a list for split {split} or {splits[0]}, not for both")
        members: dict[str, list[ListedVideo]] = {"0": unused, "1": [], "2": []}
        for name in classes:
            for _, (video, number) in match_lines(folder / f"{name}{ending}", r"(.+?) +([012])", "video.avi and 0, 1 or 2"):
                members[number].append(ListedVideo(name, Path(video).stem))
        sets[f"train_{split}"], sets[f"test_{split}"] = members["1"], members["2"]
    return OfficialLists(classes, sets, unused)


def read_kinetics400(folder: Path) -> OfficialLists:
    """Returns the sets "train" and "val" of Kinetics-400; labels follow the classes' names in alphabetical order.

    `train.csv` and `val.csv` (`validate.csv` in some archives) have columns label, youtube_id, time_start and time_end (s)
    in any order. A video is named by its times in six digits: `id_000000_000010`. InputError with `file:line`.
    """
    wanted = ("label", "youtube_id", "time_start", "time_end")
    sets: dict[str, list[ListedVideo]] = {"train": [], "val": []}
    for name, videos in sets.items():
        path, other = folder / f"{name}.csv", folder / "validate.csv"
        if name == "val" and other.exists() and not path.exists():
            path = other
        rows = csv.DictReader(io.StringIO(_read_text(path), newline=""))
        try:
            if not {*wanted} <= {*(rows.fieldnames or ())}:
                raise ValueError(f"columns {','.join(rows.fieldnames or ())}, expected {','.join(wanted)},split")
            for row in rows:
                label, youtube_id, start, end = (row[column] for column in wanted)
                if None in row or None in row.values():
                    raise ValueError(f"more or fewer than the {len(rows.fieldnames)} columns of the header")
                if not re.fullmatch(r"[0-9.]+ [0-9.]+", f"{start} {end}"):
                    raise ValueError(f"times {start!r} and {end!r}, expected seconds")
                videos.append(ListedVideo(label, f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}"))
        except (ValueError, OverflowError, csv.Error) as error:
            raise InputError(f"{path}:{rows.line_num}: {error}") from error
    return OfficialLists(sorted({video.class_name for videos in sets.values() for video in videos}), sets, [])


def group_finder(pattern: str) -> Callable[[str], str | None]:
    """Returns a function from a video's name to its group, the pattern's first (...), or None where it does not match."""
    compiled = compile_group_pattern("--group_pattern", pattern)
    return lambda name: match[1] if (match := compiled.fullmatch(name)) else None


def match_lines(path: Path, pattern: str, expected: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (`file:line`, groups of `pattern`) of each line that is not blank; InputError if one does not match."""
    for number, line in enumerate(map(str.strip, _read_text(path).splitlines()), start=1):
        if match := re.fullmatch(pattern, line):
            yield f"{path}:{number}", match.groups()
        elif line:
            raise InputError(f"{path}:{number}: {line!r}, expected {expected}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the list: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
