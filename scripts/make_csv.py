"""Write the csv files that pretraining and evaluation read, from videos on disk and the official split files.

    python scripts/make_csv.py ucf101 ucf101/frames --annotations ucfTrainTestlist --out ucf101
    python scripts/make_csv.py hmdb51 hmdb51/frames --annotations testTrainMulti_7030_splits --out hmdb51 --split 1 2 3
    python scripts/make_csv.py kinetics400 k400/frames --annotations k400_annotations --out k400 --allow_missing
    python scripts/make_csv.py folder my_videos --test_fraction 0.2 --out mine

The tree has frame folders (of extract_frames.py, whose counts are taken, or others', which are counted) or video files,
whose number of frames stays empty, to be found by who reads the csv, unless --count asks for it here. Videos are
matched by their own names, so any layout of the tree will do: by class, flat, train and val.

Written to --out: train_S.csv and test_S.csv for each split S (kinetics400: train.csv and val.csv; folder: train.csv,
test.csv), pretrain.csv (the first training set without labels), classes.txt (line 1 is the class of label 0) and
differences.csv (what is missing, unusable, extra or there twice).

Exit status: 0; 1 videos of the official lists are missing or unusable, which --allow_missing accepts; 2 a user's
mistake.
"""
# ruff: noqa: E402
from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

from dataset.prepare.annotations import (
    GROUP_PATTERN, OFFICIAL_COUNTS, Annotations, group_finder, read_hmdb51, read_kinetics400, read_ucf101,
)
from dataset.prepare.csv_files import (
    Difference, Row, count_files, match_videos, split_classes, write_classes, write_csv, write_differences,
)
from dataset.prepare.worker_pool import available_cores
from dataset.video_file import require_decoder
from dataset.prepare.video_tree import FoundVideo, find_videos
from utils.errors import INTERRUPTED, InputError, report
from utils.cli import OneLineParser, find_too_small

NAMED = 3
DIFFERENCES = "differences.csv"


def make_parser() -> OneLineParser:
    """One subcommand for each data set."""
    parser = OneLineParser(prog="make_csv.py", description=__doc__)
    commands = parser.add_subparsers(dest="data_set", required=True, metavar="DATASET")
    for name, what in (("ucf101", "folder of classInd.txt, trainlist0S.txt, testlist0S.txt"),
                       ("hmdb51", "folder of CLASS_test_splitS.txt"),
                       ("kinetics400", "folder of train.csv, val.csv (or validate.csv)"), ("folder", "")):
        command = commands.add_parser(name, prog=f"make_csv.py {name}", description=__doc__,
                                      help=what or "a folder of videos for each class")
        command.add_argument("tree", metavar="TREE", type=Path, help="folder with frame folders or video files")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the csv files")
        command.add_argument("--source", choices=("frames", "files"),
                             help="which to take where the tree has frame folders and video files")
        command.add_argument("--count", action="store_true", help="count the frames of video files")
        command.add_argument("--workers", type=int, default=available_cores(), metavar="N", help="processes of --count")
        if what:
            command.add_argument("--annotations", type=Path, required=True, metavar="DIR", help=what)
            command.add_argument("--allow_missing", action="store_true", help="exit status 0 though videos are missing")
        if name in OFFICIAL_COUNTS:
            command.add_argument("--split", type=int, nargs="+", choices=(1, 2, 3), default=[1], metavar="S",
                                 help="official splits; pretrain.csv has the training videos of the first")
        if name == "folder":
            command.add_argument("--test_fraction", type=float, default=0.0, metavar="P",
                                 help="share of each class's videos that become test videos, 0 to below 1")
            command.add_argument("--seed", type=int, default=0, help="seed of the draw, from 0")
            command.add_argument("--group_pattern", default=GROUP_PATTERN, metavar="REGEX",
                                 help="matched on a video's whole name; its first (...) names the group, which stays "
                                      "on one side")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status, as the module's docstring has it."""
    parser = make_parser()
    flags = parser.parse_args(arguments)
    problem = find_too_small({"--workers": (flags.workers, 1), "--seed": (getattr(flags, "seed", None), 0)})
    if problem:
        parser.error(problem)
    try:
        return make(flags)
    except InputError as error:
        return report(error, parser.prog)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def make(flags: argparse.Namespace) -> int:
    """Exit status, after the files are written and what differs is told."""
    annotations = read_annotations(flags)
    if annotations is not None:
        for name in annotations.sets:
            path = flags.out / f"{name}.csv"
            if path.exists() and flags.out.resolve() == flags.annotations.resolve():
                raise InputError(f"--out {flags.out}: {path} is an official list, which would be lost; "
                                 "name another folder")
    found = find(flags.tree, flags.source)
    if flags.count:
        require_decoder()
        found = count_files(found, flags.workers)
    if annotations is not None:
        sets, differences = match_videos(annotations, found)
        classes = annotations.classes
    else:
        if not 0 <= flags.test_fraction < 1:
            raise InputError(f"--test_fraction {flags.test_fraction}: must be from 0 to below 1")
        group_of = group_finder(flags.group_pattern)
        classes, sets, differences = split_classes(found, flags.test_fraction, flags.seed, group_of)
    first = next(iter(sets))
    write_csv(flags.out / "pretrain.csv", sets[first], labelled=False)
    for name, rows in sets.items():
        write_csv(flags.out / f"{name}.csv", rows, labelled=True)
    write_classes(flags.out / "classes.txt", classes)
    write_differences(flags.out / DIFFERENCES, differences)
    print(f"{flags.out}: pretrain.csv ({len(sets[first]):,} videos of {first}), "
          f"classes.txt ({len(classes):,} classes), " + ", ".join(f"{name}.csv" for name in sets))
    lacking = tell_sets(flags.data_set, annotations, sets, len(classes))
    tell_differences(differences, flags.out)
    if annotations is not None and lacking and not flags.allow_missing:
        print("exit status 1, as not all videos of the official lists are there; --allow_missing accepts that")
        return 1
    return 0


def read_annotations(flags: argparse.Namespace) -> Annotations | None:
    """The official lists; None for a folder a class."""
    if flags.data_set == "folder":
        return None
    if not flags.annotations.is_dir():
        raise InputError(f"--annotations {flags.annotations}: no such folder")
    if flags.data_set == "kinetics400":
        return read_kinetics400(flags.annotations)
    splits = list(dict.fromkeys(flags.split))
    return (read_ucf101 if flags.data_set == "ucf101" else read_hmdb51)(flags.annotations, splits)


def find(tree: Path, source: str | None) -> list[FoundVideo]:
    """The tree's frame folders, or its video files."""
    folders, files = find_videos(tree)
    if folders and files and source is None:
        raise InputError(f"{tree}: has {len(folders)} frame folders and {len(files)} video files; "
                         "say which by --source frames or --source files")
    found = {"frames": folders, "files": files, None: folders or files}[source]
    if not found:
        raise InputError(f"{tree}: no {'video' if source is None else source} below it")
    print(f"{tree}: {len(found):,} {'frame folders' if found is folders else 'video files'}")
    return found


def tell_sets(data_set: str, annotations: Annotations | None, sets: dict[str, list[Row]], num_classes: int) -> int:
    """How many videos the sets lack of the official lists, and of the official counts; prints a table."""
    lacking = 0
    print(f"{'set':<10}{'in csv':>10}{'in list':>10}{'official':>10}{'classes':>9}")
    for name, rows in sets.items():
        listed = len(annotations.sets[name]) if annotations else len(rows)
        role, _, split = name.partition("_")
        official = None
        if data_set in OFFICIAL_COUNTS:
            official = OFFICIAL_COUNTS[data_set][int(split)][("train", "test").index(role)]
        lacking += max(listed, official or 0) - len(rows)
        print(f"{name:<10}{len(rows):>10,}{listed if annotations else '-':>10{',' if annotations else ''}}"
              f"{official or '-':>10{',' if official else ''}}{len({row.label for row in rows}):>9,}")
        if official is not None and listed != official:
            print(f"{name}: the list names {listed:,} videos, the official one {official:,}: is it complete?")
        empty = num_classes - len({row.label for row in rows})
        if empty:
            print(f"{name}: {empty:,} of {num_classes:,} classes have no video")
    return lacking


def tell_differences(differences: list[Difference], out: Path) -> None:
    """Prints how many there are of each kind, and the first names."""
    for kind, count in Counter(difference.kind for difference in differences).items():
        names = [f"{d.video} ({d.reason})" if d.reason else d.video for d in differences if d.kind == kind]
        print(f"{kind}: {count:,}: {', '.join(names[:NAMED])}{', ...' if count > NAMED else ''}")
    if differences:
        print(f"all of them: {out / DIFFERENCES}")


if __name__ == "__main__":
    sys.exit(main())
