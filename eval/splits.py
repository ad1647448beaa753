"""The csv files that an evaluation reads: one pair of training and test videos, or a pair for each split.

With `--splits 1,2,3` the paths hold `{split}`, such as `--train_csv train_{split}.csv`; every split is evaluated on its own,
and the result card gives mean and standard deviation over them.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from dataset.records import VideoRecord, read_records
from utils.errors import InputError

PLACEHOLDER = "{split}"


class EvalSplit(NamedTuple):
    """One pair of csv files. `name`: what replaces `{split}` in their paths, None without `--splits`."""

    name: str | None
    train_csv: str
    test_csv: str

    @property
    def csv_files(self) -> dict[str, str]:
        """Role ("train", "test") -> path."""
        return {"train": self.train_csv, "test": self.test_csv}


def add_split_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the csv files."""
    add = parser.add_argument_group("data").add_argument
    add("--train_csv", required=True, metavar="CSV", help="training videos: frame_dir,number_of_frames,label")
    add("--test_csv", required=True, metavar="CSV", help="test videos, likewise")
    add("--splits", metavar="NAME,...",
        help=f"evaluate each split, such as 1,2,3, and print mean and sample standard deviation; its name replaces "
             f"{PLACEHOLDER} in --train_csv and --test_csv")


def find_splits(flags: argparse.Namespace) -> list[EvalSplit]:
    """Returns the splits that the flags name, in order; without `--splits` one, of name None."""
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


def read_split(split: EvalSplit) -> dict[str, list[VideoRecord]]:
    """Returns role -> labelled videos; InputError where they cannot be training and test set of one data set."""
    records = {role: read_records(path, labelled=True) for role, path in split.csv_files.items()}
    for role, path in split.csv_files.items():
        labels: dict[str, int] = {}
        for record in records[role]:
            if record.path in labels:
                raise InputError(f"{path}: names {record.path} twice, with label {labels[record.path]} and with label "
                                 f"{record.label}: a video counts once")
            labels[record.path] = record.label
    check_pair(records["train"], records["test"], split.train_csv, split.test_csv)
    return records


def check_pair(train: Sequence[VideoRecord], test: Sequence[VideoRecord], train_csv: str, test_csv: str) -> None:
    """Raises InputError for test labels without training videos, a video in both lists, or contradicting class folders."""
    train_labels, train_paths = {record.label for record in train}, {record.path for record in train}
    unknown = [record for record in test if record.label not in train_labels]
    if unknown:
        raise InputError(
            f"{test_csv}: label {unknown[0].label} ({unknown[0].path}) occurs nowhere in {train_csv}; "
            f"{len(unknown)} test video(s) have such labels: are both files of one data set?")
    shared = [record for record in test if record.path in train_paths]
    if shared:
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too, such as {shared[0].path}: "
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
    pairs = {(PurePath(record.path).parent.name, record.label) for record in records}
    folders = dict(pairs)
    return folders if len(pairs) == len(folders) == len(set(folders.values())) < len(records) else {}
