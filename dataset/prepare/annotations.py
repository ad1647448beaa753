"""Official lists of UCF-101, HMDB-51, Kinetics-400, Something-Something V2 and Diving48: videos and classes of each set."""
from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dataset.frames import video_name
from utils.cli import compile_group_pattern
from utils.errors import InputError, name_some
from utils.files import read_lines, read_text

GROUP_PATTERN = r"(.+_g\d+)_c\d+"  # clips cut from one recording: v_Archery_g03_c05 is of the group v_Archery_g03

# Videos of each set, as the data sets' own pages and papers state them.
OFFICIAL_COUNTS = {"ucf101": {"train_1": 9537, "test_1": 3783, "train_2": 9586, "test_2": 3734, "train_3": 9624,
                              "test_3": 3696},
                   "hmdb51": dict.fromkeys(("train_1", "train_2", "train_3"), 3570)
                   | dict.fromkeys(("test_1", "test_2", "test_3"), 1530),
                   "ssv2": {"train": 168913, "val": 24777},
                   "diving48": {"train": 15027, "test": 1970}}  # of V2


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
    for where, (number, name) in match_lines(folder / "classInd.txt", r"([0-9]{1,9}) +(.+)", "a class number and a class"):
        if name in numbers:
            raise InputError(f"{where}: '{number} {name}', but {name} has number {numbers[name]} already")
        numbers[name] = int(number)
    if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
        raise InputError(f"{folder / 'classInd.txt'}: class numbers are not 1, 2, ..., {len(numbers)}")
    sets: dict[str, list[ListedVideo]] = {f"{role}_{split}": [] for split in splits for role in ("train", "test")}
    for set_name, videos in sets.items():
        path = folder / f"{set_name.replace('_', 'list0')}.txt"
        for where, (name, file_name, number) in match_lines(path, r"([^/]+)/(\S+)(?: +([0-9]{1,9}))?", "Class/video.avi"):
            if name not in numbers:
                raise InputError(f"{where}: '{name}/{file_name}', but {name} is no class of classInd.txt")
            if number and int(number) != numbers[name]:
                raise InputError(f"{where}: class number {number}, but classInd.txt has {numbers[name]} for {name}")
            videos.append(ListedVideo(name, video_name(file_name)))
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
        of_split = sorted(path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}"))
        if not of_split:
            raise InputError(f"{folder}: no files *{ending}, the official lists of HMDB-51's split {split}")
        classes = classes or of_split
        if odd := sorted({*of_split} ^ {*classes}):
            raise InputError(f"{folder}: class {odd[0]} has a list for split {split} or {splits[0]}, not for both")
        members: dict[str, list[ListedVideo]] = {"0": unused, "1": [], "2": []}
        for name in classes:
            for _, (video, number) in match_lines(folder / f"{name}{ending}", r"(.+?) +([012])", "video.avi and 0, 1 or 2"):
                members[number].append(ListedVideo(name, video_name(video)))
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
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        try:
            if not {*wanted} <= {*(rows.fieldnames or ())}:
                raise ValueError(f"columns {','.join(rows.fieldnames or ())}, expected {','.join(wanted)},split")
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"more or fewer than the {len(rows.fieldnames)} columns of the header")
                label, youtube_id, start, end = (row[column].strip() for column in wanted)
                if not (label and youtube_id):
                    raise ValueError("label or youtube_id is empty")
                if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", time) for time in (start, end)):
                    raise ValueError(f"times {start[:20]!r} and {end[:20]!r}, expected seconds")
                videos.append(ListedVideo(label, f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}"))
        except (ValueError, csv.Error) as error:
            raise InputError(f"{path}:{rows.line_num}: {error}") from error
    return OfficialLists(sorted({video.class_name for videos in sets.values() for video in videos}), sets, [])


def read_ssv2(folder: Path) -> OfficialLists:
    """Returns the sets "train" and "val" of Something-Something V2; labels are those of `labels.json`.

    `train.json` and `validation.json` are lists of {"id", "template", ...}: the class is the template without its square
    brackets. `labels.json` has {class: "number"}. The videos of `test.json`, if it is there, have no labels and are in no
    set. Each name may begin with `something-something-v2-`. InputError with the file and the number of the entry.
    """
    def path_of(name: str) -> Path:
        long = folder / f"something-something-v2-{name}.json"
        return long if long.exists() else folder / f"{name}.json"

    path = path_of("labels")
    numbers = _read_json(path)
    if not (isinstance(numbers, dict) and all(re.fullmatch("[0-9]{1,9}", str(number)) for number in numbers.values())
            and sorted(map(int, numbers.values())) == list(range(len(numbers)))):
        raise InputError(f'{path}: expected {{"class": "number", ...}} with the numbers 0, 1, 2, ...')
    sets: dict[str, list[ListedVideo]] = {"train": [], "val": []}
    for name, videos in sets.items():
        for where, video, template in read_entries(path_of("validation" if name == "val" else name), id=str, template=str):
            class_name = re.sub(r"[\[\]]", "", template)
            if class_name not in numbers:
                raise InputError(f"{where}: template {template!r} of video {video!r} is no class of {path.name}")
            videos.append(ListedVideo(class_name, video))
    test = path_of("test")
    unused = [ListedVideo("", video) for _, video in read_entries(test, id=str)] if test.exists() else []
    return OfficialLists(sorted(numbers, key=lambda name: int(numbers[name])), sets, unused)


def read_diving48(folder: Path) -> OfficialLists:
    """Returns the sets "train" and "test" of Diving48 V2; labels are those of the lists, which count from 0.

    `Diving48_V2_train.json` and `Diving48_V2_test.json` are lists of {"vid_name", "label", "start_frame", "end_frame"},
    `Diving48_vocab.json` has the names of the classes in order, each a list of its four parts. The frame numbers are not
    used: each video is one dive and is taken whole. InputError with the file and the number of the entry.
    """
    path = folder / "Diving48_vocab.json"
    vocabulary = _read_json(path)
    if not (isinstance(vocabulary, list) and all(isinstance(parts, list) and all(isinstance(part, str) for part in parts)
                                                 for parts in vocabulary)):
        raise InputError(f'{path}: expected [["Back", "15som", "05Twis", "FREE"], ...]')
    classes = [" ".join(parts) for parts in vocabulary]
    if twice := [name for name, times in Counter(classes).items() if times > 1]:
        raise InputError(f"{path}: names {len(twice)} class(es) twice: {name_some([*map(repr, twice)])}")
    sets: dict[str, list[ListedVideo]] = {"train": [], "test": []}
    for name, videos in sets.items():
        for where, video, label in read_entries(folder / f"Diving48_V2_{name}.json", vid_name=str, label=int):
            if not 0 <= label < len(classes):
                raise InputError(f"{where}: label {label} of video {video!r}, but {path.name} has {len(classes)} classes")
            videos.append(ListedVideo(classes[label], video))
    return OfficialLists(classes, sets, [])


def read_entries(path: Path, **fields: type) -> Iterator[tuple[Any, ...]]:
    """Yields (file and number from 1, value of each of `fields`) of the objects in a JSON list; InputError for others."""
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of objects")
    for number, entry in enumerate(entries, start=1):
        if not (isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in fields.items())):
            raise InputError(f"{path}: entry {number}: {json.dumps(entry)[:100]}, expected an object with "
                             + " and ".join(f"{name} ({'text' if kind is str else 'a whole number'})"
                                            for name, kind in fields.items()))
        yield f"{path}: entry {number}", *(entry[name] for name in fields)


def group_finder(pattern: str) -> Callable[[str], str | None]:
    """Returns a function from a video's name to its group, the pattern's first (...), or None where it does not match."""
    compiled = compile_group_pattern("--group_pattern", pattern)
    return lambda name: match[1] if (match := compiled.fullmatch(name)) else None


def match_lines(path: Path, pattern: str, expected: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (`file:line`, groups of `pattern`) of each line that is not blank; InputError if one does not match."""
    for where, line in read_lines(path):
        if not (match := re.fullmatch(pattern, line)):
            raise InputError(f"{where}: {line!r}, expected {expected}")
        yield where, match.groups()


def _read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested as deep
        raise InputError(f"{path}: not JSON of such a list: {error}") from error
