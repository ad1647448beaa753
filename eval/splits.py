"""The csv files that an evaluation reads: one pair of training and test videos, or a pair for each split.

With `--splits 1,2,3` the paths hold `{split}`, such as `--train_csv train_{split}.csv`; every split is evaluated on its own,
and the result card gives mean and standard deviation over them. With `--shots N`, few-shot as in the SEVERE benchmark
(Thoker et al. 2022), N training videos of each class are drawn; several `--shots_seeds` are evaluated as splits are.
"""
from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from dataset.frames import split_series, video_identities
from dataset.records import VideoRecord, read_records, shared_videos
from utils.cli import check_values
from utils.errors import InputError, name_some

PLACEHOLDER = "{split}"


class EvalSplit(NamedTuple):
    """One pair of csv files.

    `name`: what replaces `{split}` in their paths, and the seed with `--shots_seeds`; None without both flags. `shots`:
    (training videos of each class, seed that draws them); None: all.
    """

    name: str | None
    train_csv: str
    test_csv: str
    shots: tuple[int, int] | None = None

    @property
    def csv_files(self) -> dict[str, str]:
        """Role ("train", "test") -> path."""
        return {"train": self.train_csv, "test": self.test_csv}


def add_split_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--train_csv", required=True, metavar="CSV", help="training videos: frame_dir,number_of_frames,label")
    add("--test_csv", required=True, metavar="CSV", help="test videos, likewise")
    add("--splits", metavar="NAME,...",
        help=f"evaluate each split, such as 1,2,3, and print mean and sample standard deviation; its name replaces "
             f"{PLACEHOLDER} in --train_csv and --test_csv")
    add("--shots", type=int, metavar="N",
        help="few-shot: use N training videos of each class, drawn by --seed before any hold-out; those of a smaller N are "
             "among them (default: all)")
    add("--shots_seeds", metavar="SEED,...",
        help="draw the shots by each of these seeds, such as 0,1,2, and print mean and sample standard deviation; the other "
             "draws are those of --seed")


def find_splits(flags: argparse.Namespace) -> list[EvalSplit]:
    """Returns the splits that the flags name, in order, each as often as there are `--shots_seeds`."""
    splits = find_csv_splits(flags)
    if flags.shots is None:
        if flags.shots_seeds is not None:
            raise InputError(f"--shots_seeds {flags.shots_seeds}: needs --shots, the number of videos of each class")
        return splits
    check_values({"--shots": (flags.shots, 1)})
    if flags.shots_seeds is None:
        return [split._replace(shots=(flags.shots, flags.seed)) for split in splits]
    seeds = flags.shots_seeds.split(",")
    if not all(re.fullmatch("0|[1-9][0-9]*", seed) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"--shots_seeds {flags.shots_seeds}: must be distinct numbers from 0, such as 0,1,2")
    return [split._replace(name="_".join(filter(None, (split.name, "seed", seed))), shots=(flags.shots, int(seed)))
            for split in splits for seed in seeds]


def find_csv_splits(flags: argparse.Namespace) -> list[EvalSplit]:
    """Returns the splits of `--splits`, in order; without it one, of name None."""
    paths = {"--train_csv": flags.train_csv, "--test_csv": flags.test_csv}
    if flags.splits is None:
        for flag, path in paths.items():
            if PLACEHOLDER in path:
                raise InputError(f"{flag} {path}: holds {PLACEHOLDER}; name the splits, such as --splits 1,2,3")
        return [EvalSplit(None, *paths.values())]
    names = flags.splits.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--splits {flags.splits}: must be distinct names, such as 1,2,3")
    for flag, path in paths.items():
        if PLACEHOLDER not in path:
            raise InputError(f"{flag} {path}: lacks {PLACEHOLDER}, which --splits {flags.splits} fills in, such as "
                             f"{flag.removeprefix('--').removesuffix('_csv')}_{PLACEHOLDER}.csv")
    return [EvalSplit(name, *(path.replace(PLACEHOLDER, name) for path in paths.values())) for name in names]


def read_split(split: EvalSplit, counts: Mapping[str, Sequence[int]] = {}) -> dict[str, list[VideoRecord]]:
    """Returns role -> labelled videos, training videos by `split.shots`; InputError unless they are of one data set.

    `counts`: role -> numbers of frames that another process has read, see `read_records`.
    """
    records = {role: read_records(path, labelled=True, counts=counts.get(role)) for role, path in split.csv_files.items()}
    for role, path in split.csv_files.items():
        labels: dict[str, int] = {}
        again = []
        for record, identity in zip(records[role], video_identities([record.path for record in records[role]])):
            if identity in labels:
                again.append(f"{record.path} twice, with label {labels[identity]} and with label {record.label}")
            labels.setdefault(identity, record.label)
        if again:
            raise InputError(f"{path}: names {name_some(again)}: a video counts once")
    check_pair(records["train"], records["test"], split.train_csv, split.test_csv)
    if split.shots:
        records["train"] = draw_shots(records["train"], *split.shots, split.train_csv)
    return records


def draw_shots(videos: Sequence[VideoRecord], shots: int, seed: int, train_csv: str) -> list[VideoRecord]:
    """Returns `shots` videos of each label in their order, drawn from `seed`; those of fewer shots are among them."""
    labels, rng, drawn = np.array([video.label for video in videos]), np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise InputError(f"--shots {shots}: {train_csv} has only {len(members)} video(s) of label {label}, such as "
                             f"{videos[members[0]].path}")
        drawn += rng.permutation(members)[:shots].tolist()
    return [videos[index] for index in sorted(drawn)]


def check_pair(train: Sequence[VideoRecord], test: Sequence[VideoRecord], train_csv: str, test_csv: str) -> None:
    """Raises InputError for test labels without training videos, a video in both lists, or contradicting class folders."""
    train_labels = {record.label for record in train}
    unknown = [record for record in test if record.label not in train_labels]
    if unknown:
        raise InputError(
            f"{test_csv}: label {unknown[0].label} ({unknown[0].path}) occurs nowhere in {train_csv}; "
            f"{len(unknown)} test video(s) have such labels: are both files of one data set?")
    shared = shared_videos(train, test)
    if shared:
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too: "
                         f"{name_some([record.path for record in shared])}: "
                         "a test video must not be a training video")
    train_folders, test_folders = class_folders(train), class_folders(test)
    common = sorted(train_folders.keys() & test_folders.keys())
    if train_folders and test_folders and not common:
        raise InputError(f"{test_csv}: its videos lie in class folders such as {min(test_folders)}, those of "
                         f"{train_csv} in others, such as {min(train_folders)}: are both files of one data set?")
    for name in common:
        if train_folders[name] != test_folders[name]:
            raise InputError(f"{test_csv}: class folder {name} has label {test_folders[name]} here and "
                             f"{train_folders[name]} in {train_csv}")


def class_folders(records: Sequence[VideoRecord]) -> dict[str, int]:
    """Returns folder name -> label where each class has its own folder, {} otherwise and if no class has two videos."""
    pairs = {(PurePath(split_series(record.path)[0]).parent.name, record.label) for record in records}
    folders = dict(pairs)
    return folders if len(pairs) == len(folders) == len(set(folders.values())) < len(records) else {}
