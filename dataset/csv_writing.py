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

from dataset.annotations import Annotated, Annotations
from dataset.job_pool import Crash, run_jobs, show_progress
from dataset.video_file import count_frames
from dataset.video_tree import FoundVideo
from utils.errors import InputError


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
    folders. Of several of one name the one in the set's folder is taken, then the one in the class's, then the
    first; the others are told as duplicates. InputError when none of the annotated videos is found.
    """
    by_name: dict[str, list[FoundVideo]] = defaultdict(list)
    for video in found:
        by_name[video.last_name].append(video)
    labels = {name: label for label, name in enumerate(annotations.classes)}
    rows: dict[str, list[Row]] = {}
    differences: list[Difference] = []
    taken: set[str] = set()
    for set_name, videos in annotations.sets.items():
        rows[set_name] = []
        for annotated in videos:
            named = f"{annotated.class_name}/{annotated.video}"
            candidates = by_name.get(annotated.video, [])
            if not candidates:
                differences.append(Difference("missing", set_name, named))
                continue
            video = max(candidates, key=lambda candidate: _fit(candidate, annotated, set_name))
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


def _fit(candidate: FoundVideo, annotated: Annotated, set_name: str) -> tuple[bool, bool]:
    """How well a video's folders fit: named after its set ("train" of "train_1"), after its class."""
    folders = candidate.name.split("/")[:-1]
    class_names = {annotated.class_name, annotated.class_name.replace(" ", "_")}
    return set_name.partition("_")[0] in folders, bool(class_names & {*folders})


def split_classes(
    found: list[FoundVideo], test_fraction: float, seed: int, group_of: Callable[[str], str | None]
) -> tuple[list[str], dict[str, list[Row]], list[Difference]]:
    """Returns (classes, rows of "train" and, with a fraction above 0, "test", differences) of a folder a class.

    Of each class about ``test_fraction`` of the videos, drawn by ``seed``, are test videos, never more; videos
    of one group (of whatever class) stay on one side. InputError for a video outside of the class folders.
    """
    differences = [Difference("unusable", "", v.name, v.problem) for v in found if v.problem]
    usable = [video for video in found if not video.problem]
    for video in found:
        if "/" not in video.name:
            raise InputError(f"{video.path}: lies in no class folder, expected CLASS/video")
    classes = sorted({video.name.partition("/")[0] for video in found})
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


def count_files(
    sets: dict[str, list[Row]], num_workers: int
) -> tuple[dict[str, list[Row]], list[Difference]]:
    """Returns the sets with the frames of each video file counted, without those that break; these, as differences."""
    paths = sorted({row.video.path for rows in sets.values() for row in rows if row.video.num_frames is None})
    jobs = show_progress(run_jobs(_count, paths, num_workers), len(paths), "counting", "videos")
    counts = {path: count.reason if isinstance(count, Crash) else count for path, count in jobs}
    counted: dict[str, list[Row]] = {}
    broken = []
    for name, rows in sets.items():
        counted[name] = []
        for row in rows:
            count = counts.get(row.video.path, row.video.num_frames)
            if isinstance(count, str):
                broken.append(Difference("unusable", name, row.video.name, f"{row.video.path}: {count}"))
            else:
                counted[name].append(replace(row, video=replace(row.video, num_frames=count)))
    return counted, broken


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
