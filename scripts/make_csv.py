"""Write the csv files of pretraining and evaluation from videos on disk and the official split files.

    python scripts/make_csv.py ucf101 ucf101/frames --annotations ucfTrainTestlist --out ucf101
    python scripts/make_csv.py hmdb51 hmdb51/frames --annotations testTrainMulti_7030_splits --out hmdb51 --split 1 2 3
    python scripts/make_csv.py kinetics400 k400/frames --annotations k400_annotations --out k400 --allow_missing
    python scripts/make_csv.py ssv2 ssv2/frames --annotations ssv2_labels --out ssv2
    python scripts/make_csv.py diving48 diving48/frames --annotations diving48_lists --out diving48
    python scripts/make_csv.py folder my_videos --test_fraction 0.2 --out mine

TREE has frame folders (the frame counts of extract_frames.py are used, other folders are counted) or video files, whose
frame count stays empty unless --count is given. Videos are matched by name, in any layout: by class, flat, train and val.

Files in --out: train_S.csv and test_S.csv of each split S (kinetics400, ssv2: train.csv, val.csv; diving48, folder:
train.csv, test.csv), pretrain.csv (the first training set without labels), classes.txt (line 1 is the class of label 0) and
differences.csv (missing, unusable, extra and duplicate videos, and those in two classes).

Exit status: 0; 1 videos of the official lists are missing or unusable, without --allow_missing; 2 a user's mistake.
"""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import pandas as pd

from dataset.prepare.annotations import (
    GROUP_PATTERN, OFFICIAL_COUNTS, OfficialLists, group_finder, read_diving48, read_hmdb51, read_kinetics400, read_ssv2,
    read_ucf101,
)
from dataset.prepare.csv_files import ListDifference, count_files, find_repeated, match_videos, split_classes
from dataset.prepare.video_tree import find_videos
from dataset.prepare.worker_pool import available_cores
from dataset.records import VideoRecord, write_records
from utils.cli import OneLineParser, check_values
from utils.errors import InputError, exit_status_of
from utils.files import write_text

EXAMPLES = 3
# name -> what its official lists are, and their reader (folder, splits) -> OfficialLists
DATA_SETS = {"ucf101": ("folder of classInd.txt, trainlist0S.txt, testlist0S.txt", read_ucf101),
             "hmdb51": ("folder of CLASS_test_splitS.txt", read_hmdb51),
             "kinetics400": ("folder of train.csv, val.csv (or validate.csv)", lambda folder, _: read_kinetics400(folder)),
             "ssv2": ("folder of something-something-v2-train.json, -validation.json, -labels.json (or without this prefix)",
                      lambda folder, _: read_ssv2(folder)),
             "diving48": ("folder of Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json",
                          lambda folder, _: read_diving48(folder)),
             "folder": ("", None)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="make_csv.py", description=__doc__)
    commands = parser.add_subparsers(dest="data_set", required=True, metavar="DATASET")
    for name, (lists, _) in DATA_SETS.items():
        command = commands.add_parser(name, prog=f"make_csv.py {name}", description=__doc__,
                                      help=lists or "a folder of videos for each class")
        add = command.add_argument
        add("tree", metavar="TREE", type=Path, help="folder with frame folders or video files")
        add("--out", type=Path, required=True, metavar="DIR", help="folder for the csv files")
        add("--source", choices=("frames", "files"), help="which to use if the tree has frame folders and video files")
        add("--series", default="", metavar="NAME", help="series of images that are the frames, in folders with several of "
            "them: 'img_*.jpg' beside flow_x_*.jpg")
        add("--count", action="store_true", help="count the frames of video files by decoding each whole")
        add("--workers", type=int, default=available_cores(), metavar="N", help="processes of --count")
        if lists:
            add("--annotations", type=Path, required=True, metavar="DIR", help=lists)
            add("--allow_missing", action="store_true", help="exit status 0 even if videos are missing")
        if "train_1" in OFFICIAL_COUNTS.get(name, {}):
            add("--split", type=int, nargs="+", choices=(1, 2, 3), default=[1], metavar="S",
                help="official splits; pretrain.csv has the training videos of the first")
        if name == "folder":
            add("--test_fraction", type=float, default=0.0, metavar="P",
                help="fraction of each class's videos to use as test videos, in [0, 1)")
            add("--seed", type=int, default=0, help="seed of the random split, from 0")
            add("--group_pattern", default=GROUP_PATTERN, metavar="REGEX",
                help="matched against a video's whole name; its first (...) is the group, which stays on one side")
    flags = parser.parse_args(arguments)
    return exit_status_of(lambda: make_csv(flags), parser.prog)


def make_csv(flags: argparse.Namespace) -> int:
    """Returns the exit status after writing the files and printing the differences."""
    check_values(at_least={"--workers": (flags.workers, 1), "--seed": (getattr(flags, "seed", None), 0)})
    lists = None if flags.data_set == "folder" else read_lists(flags)
    if not re.fullmatch(r"|[^/*]*\*\.[^/*.]+", flags.series):
        raise InputError(f"--series {flags.series}: expected the name of an image with * for its number, such as img_*.jpg")
    folders, files = find_videos(flags.tree, flags.series)
    if folders and files and flags.source is None:
        raise InputError(f"{flags.tree}: has {len(folders)} frame folders and {len(files)} video files; "
                         "choose by --source frames or --source files")
    found = {"frames": folders, "files": files, None: folders or files}[flags.source]
    if not found:
        raise InputError(f"{flags.tree}: no {flags.source or 'video'} below it, expected folders of numbered .jpg or .png "
                         "images, or video files")
    print(f"{flags.tree}: {len(found):,} {'frame folders' if found is folders else 'video files'}")
    if flags.count:
        found = count_files(found, flags.workers)
    if lists:
        classes = lists.classes
        if bad := [name for name in classes if not name.strip() or len(name.splitlines()) > 1]:
            raise InputError(f"{flags.annotations}: class {bad[0]!r}, expected one line of text, as in classes.txt")
        sets, differences = match_videos(lists, found)
    else:
        if not 0 <= flags.test_fraction < 1:
            raise InputError(f"--test_fraction {flags.test_fraction}: must be from 0 to below 1")
        classes, sets, differences = split_classes(found, flags.test_fraction, flags.seed, group_finder(flags.group_pattern))
    differences += find_repeated(classes, sets)
    first = next(iter(sets))
    if unusable := [video for video in found if video.problem] if not any(sets.values()) else []:
        raise InputError(f"{flags.tree}: none of {len(found)} videos can be used, such as {unusable[0].path}: "
                         f"{unusable[0].problem}")
    write_records(flags.out / "pretrain.csv", sets[first], labelled=False)
    for name, records in sets.items():
        write_records(flags.out / f"{name}.csv", records, labelled=True)
    write_text(flags.out / "classes.txt", "".join(f"{name}\n" for name in classes))
    table = pd.DataFrame(differences, columns=ListDifference._fields)
    write_text(flags.out / "differences.csv", table.to_csv(index=False))
    print(f"{flags.out}: pretrain.csv ({len(sets[first]):,} videos of {first}), "
          f"classes.txt ({len(classes):,} classes), " + ", ".join(f"{name}.csv" for name in sets))
    num_missing = print_sets(flags.data_set, lists, sets, len(classes))
    for kind, videos in table.groupby("kind", sort=False):
        names = [f"{name} ({reason})" if reason else name for name, reason in zip(videos.video, videos.reason)]
        print(f"{kind}: {len(names):,}: {', '.join(names[:EXAMPLES])}{', ...' if len(names) > EXAMPLES else ''}")
    if differences:
        print(f"all of them: {flags.out / 'differences.csv'}")
    if not (lists and num_missing) or flags.allow_missing:
        return 0
    print("exit status 1, as not all videos of the official lists are there; --allow_missing accepts that")
    return 1


def read_lists(flags: argparse.Namespace) -> OfficialLists:
    """Returns the official lists; InputError if a file to write would replace one of them."""
    if not flags.annotations.is_dir():
        raise InputError(f"--annotations {flags.annotations}: no such folder")
    _, read = DATA_SETS[flags.data_set]
    lists = read(flags.annotations, list(dict.fromkeys(getattr(flags, "split", ()))))
    for name in lists.sets if flags.out.resolve() == flags.annotations.resolve() else ():
        if (path := flags.out / f"{name}.csv").exists():
            raise InputError(f"--out {flags.out}: {path} is an official list, which would be lost; name another folder")
    return lists


def print_sets(data_set: str, lists: OfficialLists | None, sets: dict[str, list[VideoRecord]], num_classes: int) -> int:
    """Prints a table of the sets; returns how many videos of the official lists, or of the official counts, are missing."""
    num_missing = 0
    print(f"{'set':<10}{'in csv':>10}{'in list':>10}{'official':>10}{'classes':>9}")
    for name, records in sets.items():
        official = OFFICIAL_COUNTS.get(data_set, {}).get(name)
        listed = len(lists.sets[name]) if lists else None
        present = len({record.label for record in records})
        print(f"{name:<10}{len(records):>10,}" + "".join(
            f"{'-' if count is None else f'{count:,}':>10}" for count in (listed, official)) + f"{present:>9,}")
        if official is not None and listed != official:
            print(f"{name}: the list has {listed:,} videos, the official one {official:,}: is it complete?")
        if present < num_classes:
            print(f"{name}: {num_classes - present:,} of {num_classes:,} classes have no video")
        num_missing += max(listed or len(records), official or 0) - len(records)
    return num_missing


if __name__ == "__main__":
    sys.exit(main())
