"""A part of the training videos held out for choosing hyperparameters; videos of one group stay on one side.

Videos of one group are clips of one recording: people, place and camera are the same, so that a held-out video of a group
that is trained on leaks. UCF-101 names groups: `v_CLASS_gGROUP_cCLIP`.

Shapes: N training videos; K classes.
"""
from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataset.frames import video_name
from dataset.records import VideoRecord
from utils.cli import compile_group_pattern
from utils.errors import InputError

AUTO, NONE = "auto", "none"
UCF101_GROUP = re.compile(r"_g(\d+)_c\d+$")  # in the name of a video's folder or file, without suffix


def add_group_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--group", default=AUTO, metavar=f"{AUTO}|{NONE}|PATTERN",
                       help="videos that are held out together. auto: groups of UCF-101, _gNN_ in the names, if there are "
                            "any; none: every video on its own; else a regular expression, searched in the path of each "
                            "video, whose first group is the name of the video's group")


def check_holdout_flags(flag: str, fraction: float | None, group: str) -> None:
    """Raises InputError for a fraction (of `flag`) or a --group that cannot work."""
    if fraction is not None and not 0 < fraction < 1:
        raise InputError(f"{flag} {fraction}: must be between 0 and 1")
    if group not in (AUTO, NONE):
        compile_group_pattern("--group", group)


def find_groups(videos: Sequence[VideoRecord], group: str) -> tuple[list[str], str]:
    """Returns (name of each video's group [N], how the groups were found) for a value of --group.

    A group of UCF-101 is within a class; one of a pattern may span classes.
    """
    paths = [video.path for video in videos]  # a video that is listed twice stays on one side
    if group == NONE:
        return paths, "none: every video on its own"
    pattern = UCF101_GROUP if group == AUTO else compile_group_pattern("--group", group)
    found = [match and match[1] for match in map(pattern.search, (
        video_name(path) if group == AUTO else path for path in paths))]
    missing = [path for path, name in zip(paths, found) if name is None]
    if group != AUTO:
        if missing:
            raise InputError(f"--group {group}: does not match {len(missing)} of {len(videos)} training videos, such as "
                             f"{missing[0]}")
        return found, f"pattern {group}"
    if len(missing) == len(videos):
        return paths, "auto: no _gNN_cNN in the names, every video on its own"
    if missing:
        raise InputError(f"--group auto: {len(videos) - len(missing)} of {len(videos)} names end with _gNN_cNN as "
                         f"UCF-101's do, but {missing[0]} does not; give --group none, or a pattern for all")
    return [f"{video.label} {name}" for video, name in zip(videos, found)], "auto: class and _gNN_, as in UCF-101"


def draw_holdout(videos: Sequence[VideoRecord], group: str, fraction: float, seed: int,
                 flag: str = "--holdout") -> tuple[np.ndarray, dict[str, Any]]:
    """Returns (which videos are held out, bool [N]; how they were drawn, for the result card).

    They are about `fraction` of each class's videos, at least one, as far as whole groups allow, drawn from `seed`.
    Groups come in random order. One is held out if this brings the numbers held out of its classes nearer to what is
    wanted (sum of squares) and leaves each of its classes a training video. (Of scikit-learn's splits, GroupShuffleSplit
    leaves some small classes without training video, StratifiedGroupKFold more of them without held-out one.) InputError,
    which begins with the `flag` of the fraction, where no group can be held out.
    """
    names, how = find_groups(videos, group)
    classes, labels = np.unique([video.label for video in videos], return_inverse=True)
    counts = np.bincount(labels)
    wanted = np.maximum(fraction * counts, 1)

    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    groups = list(members.values())
    held, num_held = np.zeros(len(videos), bool), np.zeros(len(classes), np.int64)
    for number in np.random.default_rng(seed).permutation(len(groups)):
        sizes = Counter(labels[groups[number]].tolist())
        in_group, adds = np.array(list(sizes)), np.array(list(sizes.values()))
        lacks = wanted[in_group] - num_held[in_group]
        nearer = ((lacks - adds) ** 2).sum() < (lacks ** 2).sum()
        if nearer and (num_held[in_group] + adds < counts[in_group]).all():
            held[groups[number]] = True
            num_held[in_group] += adds
    if not held.any():
        raise InputError(f"{flag} {fraction}: no group of training videos can be held out for this ({how}): "
                         f"{len(groups)} group(s), {len(videos)} videos, {len(classes)} class(es); raise it, or choose "
                         "smaller groups by --group")
    return held, {
        "groups": how, "fraction": fraction, "num_groups": len(groups),
        "num_groups_held_out": sum(bool(held[group[0]]) for group in groups), "num_videos_held_out": int(held.sum()),
        "num_classes_without_held_out_video": int((num_held == 0).sum())}
