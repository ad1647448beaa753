"""Check csv files and their videos before training.

    python scripts/check_data.py csv/ucf101/train_1.csv csv/ucf101/test_1.csv
    python scripts/check_data.py --train csv/k400/pretrain.csv --seq 16 --sample 2 --report findings.csv --fix clean.csv
    python scripts/check_data.py --train pretrain.csv train_1.csv --test test_1.csv --decode

The quick check lists each frame folder, reads the size and header of each video file, and looks up 16 frames of its
index, where a partial download has zeros (mp4, mov, avi). --decode also decodes every frame: it finds empty, truncated
and damaged images, images of different sizes, broken video files and their true frame counts. Two csv files without
--train and --test are a training and a test set, in this order; the two sides may share no video and no group
(v_Archery_g03 of v_Archery_g03_c05).

--fix writes the csv files without unusable lines and with the frame counts on disk; it cannot fix shared videos, shared
groups and missing classes. Exit status: 0 no findings (notes do not count), 1 findings, 2 a user's mistake.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import pandas as pd

from dataset.prepare.annotations import GROUP_PATTERN, group_finder
from dataset.prepare.checks import (
    KINDS, NOTES, DataFinding, check_classes, check_rows, count_classes, decode_videos, fix_rows, inspect_videos,
    tabulate_rows,
)
from dataset.prepare.worker_pool import available_cores
from dataset.records import read_rows, write_records
from utils.cli import OneLineParser, check_values
from utils.errors import InputError, exit_status_of
from utils.files import write_text

EXAMPLES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="check_data.py", description=__doc__)
    add = parser.add_argument
    add("csv", nargs="*", metavar="CSV", help="one csv file, or a training and a test set")
    add("--train", nargs="+", default=[], metavar="CSV", help="csv files of the training side")
    add("--test", nargs="+", default=[], metavar="CSV", help="csv files of the test side")
    add("--classes", type=Path, metavar="FILE",
        help="classes.txt, one class per line (default: the one beside a csv, if there is one)")
    add("--group_pattern", default=GROUP_PATTERN, metavar="REGEX",
        help="matched against a video's whole name; its first (...) is the group")
    add("--seq", dest="clip_frames", type=int, metavar="T",
        help="find videos too short for pretraining with clips of T frames")
    add("--sample", dest="num_clips", type=int, metavar="V", help="clips, for --seq (default: 2)")
    add("--decode", action="store_true", help="decode every frame")
    add("--workers", type=int, default=available_cores(), metavar="N", help="processes of --decode")
    add("--report", type=Path, metavar="FILE", help="write all findings to this csv")
    add("--fix", type=Path, metavar="OUT", help="cleaned csv; a folder for several csv files")
    flags = parser.parse_args(arguments)
    return exit_status_of(lambda: check_data(flags), parser.prog)


def check_data(flags: argparse.Namespace) -> int:
    """Returns the exit status after printing, reporting and fixing the findings."""
    train, test = flags.train or flags.csv[:1], flags.test or flags.csv[1:]
    paths, fix = train + test, flags.fix
    check_values({"--workers": (flags.workers, 1), "--seq": (flags.clip_frames, 1), "--sample": (flags.num_clips, 1)})
    if flags.csv and (flags.train or flags.test):
        raise InputError(f"{flags.csv[0]}: name all csv files by --train and --test, or none")
    if len(flags.csv) > 2:
        raise InputError(f"{len(flags.csv)} csv files: say which are which by --train and --test")
    if not paths:
        raise InputError("no csv file given")
    if len({*map(Path, paths)}) < len(paths):
        raise InputError("a csv file is given twice")
    if flags.num_clips and not flags.clip_frames:
        raise InputError("--sample: does nothing without --seq, the frames of a clip")
    if fix and len(paths) > 1 and (fix.suffix.lower() == ".csv" or len({Path(path).name for path in paths}) < len(paths)):
        raise InputError(f"--fix {fix}: must be a folder, for several csv files of different names")
    cleaned = {path: fix if fix.suffix.lower() == ".csv" else fix / Path(path).name for path in paths} if fix else {}
    for path, out in cleaned.items():
        if out.resolve() == Path(path).resolve():
            raise InputError(f"--fix {fix}: would replace {path}; name another file or folder")

    group_of = group_finder(flags.group_pattern)
    num_classes = {path: count_classes(flags.classes, path) for path in paths}
    records, findings = {}, []
    for path in num_classes:
        records[path], bad_rows = read_rows(path)
        findings += [DataFinding("row", path, *bad_row) for bad_row in bad_rows]
    videos = list(dict.fromkeys(record.path for of_csv in records.values() for record in of_csv))
    inspections = inspect_videos(videos)
    if flags.decode:
        inspections = decode_videos(inspections, flags.workers)
    rows = tabulate_rows(records, test, inspections, num_classes, group_of)
    findings += check_rows(rows, None if flags.clip_frames is None else flags.clip_frames * (flags.num_clips or 2))
    findings += check_classes(rows)

    found = sum(finding.kind not in NOTES for finding in findings)
    print(f"{', '.join(records)}: {len(rows):,} lines, {len(videos):,} videos "
          f"{'decoded' if flags.decode else 'inspected'}, {found:,} findings, {len(findings) - found:,} notes")
    for kind, advice in KINDS.items():
        members = [finding for finding in findings if finding.kind == kind]
        if members:
            print(f"\n{len(members):>7,}  {kind}{' (note)' if kind in NOTES else ''}: {advice}")
        for _, csv, line, path, detail in members[:EXAMPLES]:
            print(f"         {csv}{f':{line}' if line else ''}: {f'{path}: ' if path else ''}{detail}")
        if len(members) > EXAMPLES:
            print("         ...")
    if findings:
        print()
    if flags.report:
        table = pd.DataFrame(findings, columns=DataFinding._fields).replace({"line": {0: ""}})
        write_text(flags.report, table.to_csv(index=False))
        print(f"{flags.report}: {len(findings):,} findings and notes")
    for path, out in cleaned.items():
        kept, done = fix_rows(records[path], inspections, [finding for finding in findings if finding.csv == path])
        if not kept:
            raise InputError(f"{path}: no usable video is left, {out} is not written")
        write_records(out, kept, labelled=kept[0].label is not None)
        what = "; ".join(f"{reason} {number:,}" for reason, number in done.items()) or "nothing to fix"
        print(f"{out}: {len(kept):,} of {len(records[path]):,} readable lines of {path} kept ({what})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
