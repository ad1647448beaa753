"""A part of the training videos held out for choosing hyperparameters, with sibling videos kept together.

Siblings are clips of one recording: people, place and camera are the same, so a held-out video whose siblings are
trained on says nothing about new ones. UCF-101 names them: `v_CLASS_gGROUP_cCLIP`.

Shapes: N training videos.
"""
from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from dataset.records import VideoRecord
from utils.errors import InputError

AUTO, NONE = "auto", "none"
UCF101_GROUP = re.compile(r"_g(\d+)_c\d+$")  # in the name of a video's folder or file, without suffix


@dataclass(frozen=True)
class Holdout:
    """`held`: bool [N], which videos are held out. `facts`: how they were drawn, for the card."""

    held: np.ndarray
    facts: dict[str, Any]

    def line(self) -> str:
        """What was held out, for the terminal."""
        facts = self.facts
        return (f"held out for choosing: {facts['num_videos_held_out']} of {len(self.held)} training videos, "
                f"{facts['num_groups_held_out']} of {facts['num_groups']} groups ({facts['groups']}), "
                f"{facts['num_classes_without_held_out_video']} class(es) with none")


def add_holdout_flags(group: argparse._ArgumentGroup) -> None:
    """The flags --holdout and --group."""
    group.add_argument("--holdout", type=float, default=0.2, metavar="FRACTION",
                       help="share of the training videos held out for the choice")
    add_group_flag(group)


def add_group_flag(group: argparse._ArgumentGroup) -> None:
    """The flag --group."""
    group.add_argument("--group", default=AUTO, metavar=f"{AUTO}|{NONE}|PATTERN",
                       help="siblings that are held out together. auto: those of UCF-101, _gNN_ in the names, if "
                            "they are there; none: every video is on its own; else a regular expression, searched "
                            "in the path of each video, whose first group names its siblings")


def check_holdout_flags(flags: argparse.Namespace) -> None:
    """InputError for a value that cannot work."""
    if not 0 < flags.holdout < 1:
        raise InputError(f"--holdout {flags.holdout}: must be between 0 and 1")
    check_group_flag(flags)


def check_group_flag(flags: argparse.Namespace) -> None:
    """InputError for a --group that cannot work."""
    if flags.group not in (AUTO, NONE):
        compile_pattern(flags.group)


def compile_pattern(text: str) -> re.Pattern[str]:
    """The regular expression of --group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(f"--group {text}: no regular expression: {error}") from error
    if not pattern.groups:
        raise InputError(f"--group {text}: needs a group in parentheses that names the siblings")
    return pattern


def sibling_groups(videos: Sequence[VideoRecord], group: str) -> tuple[list[str], str]:
    """(name of each video's group [N], how the groups were found). `group` is the flag's value.

    A group of UCF-101 is within a class; one of a pattern may span classes.
    """
    alone = [video.path for video in videos]  # one that is named twice stays on one side
    if group == NONE:
        return alone, "none: every video on its own"
    pattern = UCF101_GROUP if group == AUTO else compile_pattern(group)
    texts = [PurePath(video.path).stem if group == AUTO else video.path for video in videos]
    found = [match and match.group(1) for match in map(pattern.search, texts)]
    missing = [video.path for video, name in zip(videos, found) if name is None]
    if group == AUTO:
        if len(missing) == len(videos):
            return alone, "auto: no _gNN_cNN in the names, every video on its own"
        if missing:
            raise InputError(f"--group auto: {len(videos) - len(missing)} of {len(videos)} names end with _gNN_cNN as "
                             f"UCF-101's do, but {missing[0]} does not; give --group none, or a pattern for all")
        return [f"{video.label} {name}" for video, name in zip(videos, found)], "auto: class and _gNN_, as in UCF-101"
    if missing:
        raise InputError(f"--group {group}: does not match {len(missing)} of {len(videos)} training videos, such as "
                         f"{missing[0]}")
    return found, f"pattern {group}"


def draw_holdout(videos: Sequence[VideoRecord], group: str, fraction: float, seed: int,
                 flag: str = "--holdout") -> Holdout:
    """About `fraction` of each class's videos (and one at least), as far as whole groups allow, drawn by `seed`.

    Groups come in random order. One is held out if this brings the numbers held out of its classes nearer to what is
    wanted (sum of squares), and leaves each of its classes a video to train on. InputError, which begins with the
    `flag` that gave the fraction, where none is.
    """
    names, how = sibling_groups(videos, group)
    labels = np.array([video.label for video in videos])
    classes, labels = np.unique(labels, return_inverse=True)
    counts = np.bincount(labels)
    wanted = np.maximum(fraction * counts, 1)

    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    groups = list(members.values())
    held, num_held, num_groups_held = np.zeros(len(videos), bool), np.zeros(len(classes), np.int64), 0
    for number in np.random.default_rng(seed).permutation(len(groups)):
        sizes = Counter(labels[groups[number]].tolist())
        its_classes, adds = np.array(list(sizes)), np.array(list(sizes.values()))
        lacks = wanted[its_classes] - num_held[its_classes]
        nearer = ((lacks - adds) ** 2).sum() < (lacks ** 2).sum()
        if nearer and (num_held[its_classes] + adds < counts[its_classes]).all():
            held[groups[number]] = True
            num_held[its_classes] += adds
            num_groups_held += 1
    if not held.any():
        raise InputError(f"{flag} {fraction}: no group of training videos can be held out for this ({how}): "
                         f"{len(groups)} group(s), {len(videos)} videos, {len(classes)} class(es); raise it, or choose "
                         "smaller groups by --group")
    return Holdout(held, {
        "groups": how, "fraction": fraction, "num_groups": len(groups), "num_groups_held_out": num_groups_held,
        "num_videos_held_out": int(held.sum()),
        "num_classes_without_held_out_video": int((num_held == 0).sum())})
