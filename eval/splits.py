"""Which csv files an evaluation reads: one pair of training and test videos, or a pair for each split.

With `--splits 1,2,3` the paths hold `{split}`, such as `--train_csv train_{split}.csv`; every split is
evaluated on its own, and the card gives mean and standard deviation over them.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from dataset.records import VideoRecord, read_records
from utils.errors import InputError

PLACEHOLDER = "{split}"


@dataclass(frozen=True)
class Split:
    """One pair of csv files. `name` is what stands for `{split}`, None without `--splits`."""

    name: str | None
    train_csv: str
    test_csv: str

    @property
    def csv_files(self) -> dict[str, str]:
        """Role ("train", "test") -> path."""
        return {"train": self.train_csv, "test": self.test_csv}


def add_split_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the csv files."""
    data = parser.add_argument_group("data")
    data.add_argument("--train_csv", required=True, metavar="CSV",
                      help="training videos: frame_dir,number_of_frames,label")
    data.add_argument("--test_csv", required=True, metavar="CSV", help="test videos, likewise")
    data.add_argument("--splits", metavar="NAME,...",
                      help="evaluate each split, such as 1,2,3, and give mean and sample standard deviation; its name "
                           f"takes the place of {PLACEHOLDER} in --train_csv and --test_csv")


def find_splits(flags: argparse.Namespace) -> list[Split]:
    """The splits that the flags name, in their order; without `--splits` one, of name None."""
    paths = {"--train_csv": flags.train_csv, "--test_csv": flags.test_csv}
    if flags.splits is None:
        for flag, path in paths.items():
            if PLACEHOLDER in path:
                raise InputError(f"{flag} {path}: holds {PLACEHOLDER}; name the splits, such as --splits 1,2,3")
        return [Split(None, flags.train_csv, flags.test_csv)]
    names = flags.splits.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--splits {flags.splits}: must be distinct names, such as 1,2,3")
    for flag, path in paths.items():
        if PLACEHOLDER not in path:
            raise InputError(f"{flag} {path}: lacks {PLACEHOLDER}, which --splits {flags.splits} fills in, such as "
                             f"{flag.removeprefix('--').removesuffix('_csv')}_{PLACEHOLDER}.csv")
    return [Split(name, *(path.replace(PLACEHOLDER, name) for path in paths.values())) for name in names]


def read_split(split: Split) -> dict[str, list[VideoRecord]]:
    """Role -> labelled videos. InputError where the two lists cannot be training and test set of one data set."""
    records = {role: read_records(path, labelled=True) for role, path in split.csv_files.items()}
    for role, path in split.csv_files.items():
        refuse_repeated(records[role], path)
    check_pair(records["train"], records["test"], split.train_csv, split.test_csv)
    return records


def refuse_repeated(records: Sequence[VideoRecord], csv_path: str) -> None:
    """InputError for a video that stands in the csv twice, with one label or with two."""
    labels: dict[str, int] = {}
    for record in records:
        if record.path in labels:
            raise InputError(f"{csv_path}: names {record.path} twice, with label {labels[record.path]} and with label "
                             f"{record.label}: a video counts once")
        labels[record.path] = record.label


def check_pair(
    train: Sequence[VideoRecord], test: Sequence[VideoRecord], train_csv: str, test_csv: str
) -> None:
    """InputError for a test label without training videos, a video in both lists, or classes that contradict.

    Training labels that no test video has are fine, and so are gaps in the numbers.
    """
    train_labels = {record.label for record in train}
    strange = [record for record in test if record.label not in train_labels]
    if strange:
        raise InputError(
            f"{test_csv}: label {strange[0].label} ({strange[0].path}) occurs nowhere in {train_csv}; "
            f"{len(strange)} test video(s) have such labels: are both files of one data set?")
    train_paths = {record.path for record in train}
    shared = [record for record in test if record.path in train_paths]
    if shared:
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too, such as {shared[0].path}: "
                         "a test video must not be a training video")
    train_folders, test_folders = class_folders(train), class_folders(test)
    if train_folders and test_folders:
        common = train_folders.keys() & test_folders.keys()
        if not common:
            raise InputError(f"{test_csv}: its videos lie in class folders such as {min(test_folders)}, those of "
                             f"{train_csv} in others, such as {min(train_folders)}: are both files of one data set?")
        for name in sorted(common):
            if train_folders[name] != test_folders[name]:
                raise InputError(f"{test_csv}: class folder {name} has label {test_folders[name]} here and "
                                 f"{train_folders[name]} in {train_csv}")


def class_folders(records: Sequence[VideoRecord]) -> dict[str, int]:
    """Name of a class's folder -> label, where each class has a folder of its own for its videos; else empty.

    Empty too where no class has two videos, as one cannot tell a class's folder from a video's then.
    """
    pairs = {(PurePath(record.path).parent.name, record.label) for record in records}
    folders = dict(pairs)
    labels = {record.label for record in records}
    return folders if len(pairs) == len(folders) == len(labels) < len(records) else {}
