"""Find what is wrong with csv files and with the videos that they name, before training does.

    python scripts/check_data.py csv/ucf101/train_1.csv csv/ucf101/test_1.csv
    python scripts/check_data.py --train csv/k400/pretrain.csv --seq 16 --sample 2 --report findings.csv --fix clean.csv
    python scripts/check_data.py --train pretrain.csv train_1.csv --test test_1.csv --decode

The quick check looks at each frame folder's file names and at each video file's size and header. --decode decodes
every frame too: empty, cut short and damaged pictures, pictures of different sizes, broken video files and their true
counts. Two csv files without --train and --test are a training and a test set, in this order; between the two sides no
video and no group (v_Archery_g03 of v_Archery_g03_c05) may be shared.

--fix writes the csv files without the lines that cannot be used and with the counts on disk; it cannot mend shared
videos, shared groups and missing classes. Exit status: 0 nothing found (notes do not count), 1 findings, 2 a user's
mistake.
"""
# ruff: noqa: E402
from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

from dataset.prepare.annotations import GROUP_PATTERN, group_finder
from dataset.prepare.checks import (
    KINDS, Finding, Line, Look, check_labels, check_sides, compare, fix_lines, look_at_all, read_lines,
)
from dataset.prepare.csv_files import Row, write_csv
from dataset.prepare.worker_pool import Crash, available_cores, run_jobs
from dataset.frames import names_video_file
from dataset.video_file import require_decoder
from dataset.prepare.video_tree import FoundVideo
from utils.errors import INTERRUPTED, InputError, report
from utils.files import show_progress
from utils.cli import OneLineParser, find_too_small

EXAMPLES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status, as the module's docstring has it."""
    parser = OneLineParser(prog="check_data.py", description=__doc__)
    parser.add_argument("csv", nargs="*", metavar="CSV", help="one csv file, or a training and a test set")
    parser.add_argument("--train", nargs="+", default=[], metavar="CSV", help="csv files of the training side")
    parser.add_argument("--test", nargs="+", default=[], metavar="CSV", help="csv files of the test side")
    parser.add_argument("--classes", type=Path, metavar="FILE",
                        help="classes.txt, a class a line (default: the one beside a csv, where there is one)")
    parser.add_argument("--group_pattern", default=GROUP_PATTERN, metavar="REGEX",
                        help="matched on a video's whole name; its first (...) names the group")
    parser.add_argument("--seq", dest="clip_frames", type=int, metavar="T",
                        help="find videos too short for pretraining with clips of T frames")
    parser.add_argument("--sample", dest="num_clips", type=int, metavar="V", help="clips, for --seq (default 2)")
    parser.add_argument("--decode", action="store_true", help="decode every frame")
    parser.add_argument("--workers", type=int, default=available_cores(), metavar="N", help="processes of --decode")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write every finding to this csv")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="cleaned csv; a folder for several csv files")
    flags = parser.parse_args(arguments)
    train, test = flags.train or flags.csv[:1], flags.test or flags.csv[1:]
    problem = find_problem(flags, train + test)
    if problem:
        parser.error(problem)
    try:
        return check(flags, train, test)
    except InputError as error:
        return report(error, parser.prog)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def find_problem(flags: argparse.Namespace, paths: list[str]) -> str | None:
    """What cannot work among the flags, as a line, or None; `paths` are all csv files."""
    if flags.csv and (flags.train or flags.test):
        return f"{flags.csv[0]}: name all csv files by --train and --test, or none"
    if len(flags.csv) > 2:
        return f"{len(flags.csv)} csv files: say which are which by --train and --test"
    if not paths:
        return "no csv file given"
    if len({*map(str, map(Path, paths))}) < len(paths):
        return "a csv file is given twice"
    if flags.fix and len(paths) > 1:
        if flags.fix.suffix == ".csv":
            return f"--fix {flags.fix}: must be a folder, as there are several csv files"
        if len({Path(path).name for path in paths}) < len(paths):
            return f"--fix {flags.fix}: two of the csv files have one name; fix them one by one"
    if flags.num_clips is not None and flags.clip_frames is None:
        return "--sample: does nothing without --seq, the frames of a clip"
    return find_too_small({"--workers": (flags.workers, 1), "--seq": (flags.clip_frames, 1),
                           "--sample": (flags.num_clips, 1)})


def check(flags: argparse.Namespace, train: list[str], test: list[str]) -> int:
    """Exit status, after the findings are told and written."""
    group_of = group_finder(flags.group_pattern)
    paths = train + test
    for path in paths:
        if flags.fix and fix_path(flags, path).resolve() == Path(path).resolve():
            raise InputError(f"--fix {flags.fix}: would replace {path}; name another file or folder")
    classes = {path: count_classes(flags.classes, path) for path in paths}
    lines: dict[str, list[Line]] = {}
    findings: list[Finding] = []
    for path in paths:
        lines[path], broken = read_lines(path)
        findings += broken
    videos = list(dict.fromkeys(line.path for csv_lines in lines.values() for line in csv_lines))
    if any(map(names_video_file, videos)):
        require_decoder()
    looks = dict(show_progress(look_at_all(videos), len(videos), "looking", "videos"))
    if flags.decode:
        decode(looks, flags.workers)
    needed = None if flags.clip_frames is None else flags.clip_frames * (flags.num_clips or 2)
    for path in paths:
        findings += compare(path, lines[path], looks, needed)
        findings += check_labels(path, lines[path], classes[path], path in test)
    sides = [{path: lines[path] for path in side} for side in (train, test)]
    findings += check_sides(*sides, looks, group_of)

    found = sum(not KINDS[finding.kind].note for finding in findings)
    print(f"{', '.join(paths)}: {sum(map(len, lines.values())):,} lines, {len(videos):,} videos "
          f"{'decoded' if flags.decode else 'looked at'}, {found:,} findings, {len(findings) - found:,} notes")
    tell(findings)
    if flags.report:
        write_report(flags.report, findings)
        print(f"{flags.report}: {len(findings):,} findings and notes")
    if flags.fix:
        for path in paths:
            fix(path, fix_path(flags, path), lines[path], looks, [f for f in findings if f.csv == path])
    return 1 if found else 0


def decode(looks: dict[str, Look], workers: int) -> None:
    """Adds to each look at a video that can be read what decoding it tells."""
    from dataset.prepare.image_checks import decode_video  # imports torch, which takes seconds

    readable = [path for path, look in looks.items() if all(kind in ("gap", "header") or KINDS[kind].note
                                                            for kind, _ in look.faults)]
    jobs = run_jobs(decode_video, readable, workers)
    for path, decoded in show_progress(jobs, len(readable), "decoding", "videos"):
        look = looks[path]
        if isinstance(decoded, Crash):
            looks[path] = replace(look, faults=(*look.faults, ("broken video", f"decoding it: {decoded.reason}")))
        else:
            frames = look.num_frames if decoded.num_frames is None else decoded.num_frames
            looks[path] = replace(look, num_frames=frames, faults=(*look.faults, *decoded.faults()))


def count_classes(given: Path | None, csv_path: str) -> int | None:
    """The number of lines of classes.txt; None where none is given and none is beside the csv."""
    path = given or Path(csv_path).parent / "classes.txt"
    if given is None and not path.exists():
        return None
    try:
        names = [name for name in path.read_text(encoding="utf-8-sig").splitlines() if name.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the classes: {error}") from error
    if not names:
        raise InputError(f"{path}: names no class")
    return len(names)


def tell(findings: list[Finding]) -> None:
    """Prints a paragraph for each kind: how many, what to do, the first ones."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    for kind in sorted(by_kind, key=list(KINDS).index):
        members = by_kind[kind]
        print(f"\n{len(members):>7,}  {kind}{' (note)' if KINDS[kind].note else ''}: {KINDS[kind].advice}")
        for finding in members[:EXAMPLES]:
            where = f"{finding.csv}:{finding.line}" if finding.line else finding.csv
            print(f"         {where}: {f'{finding.path}: ' if finding.path else ''}{finding.detail}")
        if len(members) > EXAMPLES:
            print("         ...")
    if findings:
        print()


def write_report(path: Path, findings: list[Finding]) -> None:
    """Writes kind, csv, line, path, detail of every finding."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("kind", "csv", "line", "path", "detail"))
            table.writerows((f.kind, f.csv, f.line or "", f.path, f.detail) for f in findings)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}") from error


def fix_path(flags: argparse.Namespace, csv_path: str) -> Path:
    """Where the cleaned csv goes."""
    return flags.fix if flags.fix.suffix == ".csv" else flags.fix / Path(csv_path).name


def fix(path: str, out: Path, lines: list[Line], looks: dict[str, Look], findings: list[Finding]) -> None:
    """Writes the cleaned csv and says what was done."""
    kept, done = fix_lines(lines, looks, findings)
    if not kept:
        raise InputError(f"{path}: no usable video is left, {out} is not written")
    write_csv(out, [Row(FoundVideo("", line.path, line.num_frames), line.label) for line in kept],
              labelled=kept[0].label is not None)
    what = "; ".join(f"{what} {number:,}" for what, number in done.items()) or "nothing to fix"
    print(f"{out}: {len(kept):,} of {len(lines):,} readable lines of {path} kept ({what})")


if __name__ == "__main__":
    sys.exit(main())
