"""Videos of a tree, matched with official lists or split by folder -> records of each set."""
from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

from dataset.frames import video_identities
from dataset.prepare.annotations import OfficialLists
from dataset.prepare.video_tree import FoundVideo
from dataset.prepare.worker_pool import Crash, run_jobs
from dataset.records import VideoRecord
from dataset.video_file import FEWER, find_cut, iterate_frames
from utils.errors import InputError
from utils.files import show_progress

SET_NAMES = {"train", "val", "valid", "validation", "test"}


class ListDifference(NamedTuple):
    """A video that lists and tree do not share: "missing", "unusable", "extra" or "duplicate", or one in "two classes"; in
    which set, and why."""

    kind: str
    set: str
    video: str
    reason: str = ""


def match_videos(lists: OfficialLists,
                 found: list[FoundVideo]) -> tuple[dict[str, list[VideoRecord]], list[ListDifference]]:
    """Returns (records of each set in the order of its list; differences between lists and tree).

    A video is found by its name in any folder except that of another class. Of several with this name a usable one is
    taken, among these one of at least `FEWER` of the longest one's frames, then one in the set's folder ("train" of
    "train_1"), then one in the class's, then the first; the others are duplicates. InputError if none of the listed videos
    is found.
    """
    by_name: dict[str, list[FoundVideo]] = defaultdict(list)
    for video in found:
        by_name[video.last_name].append(video)
    class_of_folder = {folder: name for name in lists.classes for folder in (name, name.replace(" ", "_"))}
    labels = {name: label for label, name in enumerate(lists.classes)}
    records: dict[str, list[VideoRecord]] = {name: [] for name in lists.sets}
    differences, taken = [], set()
    for set_name, listed in lists.sets.items():
        role = set_name.partition("_")[0]
        for class_name, name in listed:
            candidates = []
            for video in by_name.get(name, ()):
                folders = video.name.split("/")[:-1]
                classes = {class_of_folder[folder] for folder in folders if folder in class_of_folder}
                if classes <= {class_name}:
                    candidates.append(([not video.problem, role in folders, bool(classes)], video))
            if not candidates:
                differences.append(ListDifference("missing", set_name, f"{class_name}/{name}"))
                continue
            longest = max(video.num_frames or 0 for _, video in candidates)
            for order, video in candidates:  # a copy that was cut short comes after the whole one
                order.insert(1, (video.num_frames or 0) >= FEWER * longest and not (len(candidates) > 1 and _is_cut(video)))
            _, video = max(candidates, key=itemgetter(0))  # the first of equals
            taken.add(video.path)
            if not video.problem:
                records[set_name].append(VideoRecord(video.path, video.num_frames, labels[class_name]))
            else:
                differences.append(ListDifference("unusable", set_name, f"{class_name}/{name}",
                                                  f"{video.path}: {video.problem}"))
    listed = [name for videos in (*lists.sets.values(), lists.unused) for _, name in videos]
    if not taken:
        raise InputError(f"none of the listed videos was found: the lists have, for example, {[*listed, 'nothing'][0]}, the "
                         f"tree has {len(found)} videos" + (f" such as {found[0].name}" if found else ""))
    known, doubled = set(listed), {video.last_name for video in found if video.path in taken}
    for video in found:
        if video.last_name not in known:
            differences.append(ListDifference("extra", "", video.name))
        elif video.path not in taken and video.last_name in doubled:
            differences.append(ListDifference("duplicate", "", video.name, "another of this name is taken"))
    return records, differences


def _is_cut(video: FoundVideo) -> bool:
    """Returns whether a video file whose frames were not counted is not whole, as far as `find_cut` tells."""
    try:
        return video.num_frames is None and not video.problem and bool(find_cut(video.path))
    except InputError:  # does not open
        return True


def split_classes(found: list[FoundVideo], test_fraction: float, seed: int, group_of: Callable[[str], str | None],
                  ) -> tuple[list[str], dict[str, list[VideoRecord]], list[ListDifference]]:
    """Returns (classes, records of "train" and, with a fraction above 0, "test", unusable videos) of class folders.

    At most `test_fraction` of each class, drawn by `seed`, are test videos; videos of one group, whatever their class, and
    links to one video stay on one side. InputError for a video outside the class folders, and for folders named after sets
    instead of classes.
    """
    for video in found:
        if "/" not in video.name:
            raise InputError(f"{video.path}: not in a class folder, expected CLASS/video")
    classes = sorted({video.name.partition("/")[0] for video in found})
    if {*classes} <= SET_NAMES:
        raise InputError(f"the class folders are named {', '.join(classes)}, as sets are: give the folder of one set, in "
                         "which each folder is a class")
    labels = {name: label for label, name in enumerate(classes)}
    records = []
    groups: dict[str, list[VideoRecord]] = defaultdict(list)
    key_of: dict[str, str] = {}  # identity -> key of the first path to this video
    for video, identity in zip(found, video_identities([video.path for video in found])):
        if not video.problem:
            records.append(VideoRecord(video.path, video.num_frames, labels[video.name.partition("/")[0]]))
            group = group_of(video.last_name)
            key = key_of.setdefault(identity, f"video {video.name}" if group is None else f"group {group}")
            groups[key].append(records[-1])
    order, test = sorted(groups), set()
    random.Random(seed).shuffle(order)
    room = Counter({label: int(count * test_fraction + 1e-9) for label, count in Counter(r.label for r in records).items()})
    for key in order:
        wanted = Counter(record.label for record in groups[key])
        if wanted <= room:
            test |= {record.path for record in groups[key]}
            room -= wanted
    sets = {"train": [record for record in records if record.path not in test]}
    if test_fraction > 0:
        sets["test"] = [record for record in records if record.path in test]
    unusable = [ListDifference("unusable", "", video.name, video.problem) for video in found if video.problem]
    return classes, sets, unusable


def find_repeated(classes: list[str], sets: dict[str, list[VideoRecord]]) -> list[ListDifference]:
    """Returns the videos, by whatever path, that a set has twice, or that are in different classes, also of two sets."""
    places = [(set_name, record) for set_name, records in sets.items() for record in records]
    first: dict[str, tuple[str, VideoRecord]] = {}
    found = {}
    for (set_name, record), identity in zip(places, video_identities([record.path for _, record in places])):
        other_set, other = first.setdefault(identity, (set_name, record))
        if other.label == record.label and other_set == set_name and other is not record:
            found[record.path, record.label] = ListDifference("duplicate", set_name, record.path, f"a link to {other.path}")
        if other.label != record.label:
            found[record.path, record.label] = ListDifference(
                "two classes", set_name, record.path, f"{classes[record.label]}; {other.path}: {classes[other.label]}")
    return list(found.values())


def count_files(found: list[FoundVideo], num_workers: int) -> list[FoundVideo]:
    """Returns the videos with the frame count of each video file, which is decoded, or with its problem if it breaks."""
    unknown = [video for video in found if video.num_frames is None and not video.problem]
    jobs = show_progress(run_jobs(_count, unknown, num_workers), len(unknown), "counting", "videos")
    counted = {video: replace(video, problem=result.reason) if isinstance(result, Crash) else result
               for video, result in jobs}
    return [counted.get(video, video) for video in found]


def _count(video: FoundVideo) -> FoundVideo:
    try:
        return replace(video, num_frames=sum(1 for _ in iterate_frames(video.path)))
    except InputError as error:
        return replace(video, problem=str(error).removeprefix(f"{video.path}: "))
