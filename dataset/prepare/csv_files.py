"""From videos on disk and annotations to the csv files that pretraining and evaluation read."""
from __future__ import annotations

import csv
import io
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dataset.prepare.annotations import Annotations
from dataset.prepare.worker_pool import Crash, run_jobs
from dataset.video_file import count_frames
from dataset.prepare.video_tree import FoundVideo
from utils.errors import InputError
from utils.files import show_progress


NAMES_OF_SETS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True, slots=True)
class Row:
    """One csv line to be: a video and its label (0-based)."""

    video: FoundVideo
    label: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A video in which disk and annotation differ: "missing", "unusable", "extra", "duplicate"; set and reason."""

    kind: str
    set_name: str
    video: str
    reason: str = ""


def match_videos(
    annotations: Annotations, found: list[FoundVideo]
) -> tuple[dict[str, list[Row]], list[Difference]]:
    """Returns (rows of each set, in the order of its list; the differences).

    A video is found by its own name, wherever in the tree it lies: below its class, flat, or in train and val
    folders, but not below another class. Of several of one name one without a problem is taken, of these one in the
    set's folder, then one in the class's, then the first; the others are told as duplicates. InputError when none of
    the annotated videos is found.
    """
    by_name: dict[str, list[FoundVideo]] = defaultdict(list)
    for video in found:
        by_name[video.last_name].append(video)
    labels = {name: label for label, name in enumerate(annotations.classes)}
    class_folders = {spelling: name for name in annotations.classes for spelling in (name, name.replace(" ", "_"))}
    rows: dict[str, list[Row]] = {}
    differences: list[Difference] = []
    taken: set[str] = set()
    for set_name, videos in annotations.sets.items():
        rows[set_name] = []
        for annotated in videos:
            named = f"{annotated.class_name}/{annotated.video}"
            candidates = [video for video in by_name.get(annotated.video, [])
                          if _classes_above(video, class_folders) <= {annotated.class_name}]
            if not candidates:
                differences.append(Difference("missing", set_name, named))
                continue
            video = max(candidates, key=lambda candidate: _fit(candidate, set_name, class_folders))
            if video.problem:
                differences.append(Difference("unusable", set_name, named, f"{video.path}: {video.problem}"))
            else:
                rows[set_name].append(Row(video, labels[annotated.class_name]))
            taken.add(video.path)
    if not taken:
        example = next((v for videos in annotations.sets.values() for v in videos), None)
        raise InputError(
            f"none of the annotated videos is there: the lists name, for example, "
            f"{example.video if example else 'nothing'}, the tree has {len(found)} videos"
            + (f" such as {found[0].name}" if found else "")
        )
    known = {a.video for videos in (*annotations.sets.values(), annotations.unused) for a in videos}
    for video in found:
        if video.last_name not in known:
            differences.append(Difference("extra", "", video.name))
        elif video.path not in taken and any(v.path in taken for v in by_name[video.last_name]):
            differences.append(Difference("duplicate", "", video.name, "another of this name is taken"))
    return rows, differences


def _classes_above(video: FoundVideo, class_folders: dict[str, str]) -> set[str]:
    """The classes after which folders above the video are named."""
    return {class_folders[folder] for folder in video.name.split("/")[:-1] if folder in class_folders}


def _fit(video: FoundVideo, set_name: str, class_folders: dict[str, str]) -> tuple[bool, bool, bool]:
    """How well a video fits: it can be used, a folder is named after its set ("train" of "train_1"), after its class."""
    in_set = set_name.partition("_")[0] in video.name.split("/")[:-1]
    return not video.problem, in_set, bool(_classes_above(video, class_folders))


def split_classes(
    found: list[FoundVideo], test_fraction: float, seed: int, group_of: Callable[[str], str | None]
) -> tuple[list[str], dict[str, list[Row]], list[Difference]]:
    """Returns (classes, rows of "train" and, with a fraction above 0, "test", differences) of a folder a class.

    Of each class about ``test_fraction`` of the videos, drawn by ``seed``, are test videos, never more; videos
    of one group (of whatever class) stay on one side. InputError for a video outside of the class folders, and for
    class folders that are those of sets.
    """
    differences = [Difference("unusable", "", v.name, v.problem) for v in found if v.problem]
    usable = [video for video in found if not video.problem]
    for video in found:
        if "/" not in video.name:
            raise InputError(f"{video.path}: lies in no class folder, expected CLASS/video")
    classes = sorted({video.name.partition("/")[0] for video in found})
    if {*classes} <= NAMES_OF_SETS:
        raise InputError(f"the class folders are called {', '.join(classes)}, as sets are: give the folder of one set, in "
                         "which each folder is a class")
    labels = {name: label for label, name in enumerate(classes)}
    rows = [Row(video, labels[video.name.partition("/")[0]]) for video in usable]
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        group = group_of(row.video.last_name)
        groups[f"group {group}" if group is not None else f"video {row.video.name}"].append(row)
    room = {label: int(count * test_fraction + 1e-9) for label, count in Counter(row.label for row in rows).items()}
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    test: set[str] = set()
    for group in order:
        needed = Counter(row.label for row in groups[group])
        if all(room[label] >= count for label, count in needed.items()):
            test |= {row.video.name for row in groups[group]}
            for label, count in needed.items():
                room[label] -= count
    sets = {"train": [row for row in rows if row.video.name not in test]}
    if test_fraction > 0:
        sets["test"] = [row for row in rows if row.video.name in test]
    return classes, sets, differences


def count_files(found: list[FoundVideo], num_workers: int) -> list[FoundVideo]:
    """Returns the videos with the frames of each video file counted; for one that breaks, with the problem."""
    paths = [video.path for video in found if video.num_frames is None and not video.problem]
    jobs = show_progress(run_jobs(_count, paths, num_workers), len(paths), "counting", "videos")
    counts = {path: count.reason if isinstance(count, Crash) else count for path, count in jobs}

    def counted(video: FoundVideo) -> FoundVideo:
        count = counts.get(video.path, video.num_frames)
        return replace(video, problem=count) if isinstance(count, str) else replace(video, num_frames=count)

    return [counted(video) for video in found]


def _count(path: str) -> int | str:
    """Returns the number of frames, or why the file breaks."""
    try:
        return count_frames(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")


def write_csv(path: Path, rows: Iterable[Row], labelled: bool) -> None:
    """Writes frame_dir,number_of_frames[,label]; a path below the csv's folder is relative to it, others absolute."""
    folder = os.path.abspath(path.parent)
    lines: list[tuple] = [("frame_dir", "number_of_frames", "label")]
    for row in rows:
        count = "" if row.video.num_frames is None else row.video.num_frames
        lines.append((csv_path_of(row.video.path, folder), count, row.label))
    _write_table(path, [line[: 3 if labelled else 2] for line in lines])


def csv_path_of(path: str, folder: str) -> str:
    """Returns ``path`` as a csv in ``folder`` (absolute) names it, so that it is found from wherever it is read."""
    absolute = os.path.abspath(path)
    return os.path.relpath(absolute, folder) if absolute.startswith(os.path.join(folder, "")) else absolute


def write_differences(path: Path, differences: list[Difference]) -> None:
    """Writes all differences: kind, set, video, reason."""
    _write_table(path, [("kind", "set", "video", "reason"),
                        *((d.kind, d.set_name, d.video, d.reason) for d in differences)])


def write_classes(path: Path, classes: list[str]) -> None:
    """Writes one class a line; line 1 is label 0."""
    _write_text(path, "".join(f"{name}\n" for name in classes))


def _write_table(path: Path, lines: list[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}") from error
