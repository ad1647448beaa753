"""Pack the frame folders of a csv into tar files ("shards"), for disks that limit the number of files.

    python scripts/pack_frames.py frames/ucf101.csv packed --per_shard 1000

writes packed/ucf101_00000.tar, packed/ucf101_00001.tar, ... with --per_shard videos each, in the csv's order,
and at the end packed/ucf101.csv, whose lines name the videos in them:
ucf101_00000.tar/VIDEO,number_of_frames[,label]. VIDEO is the folder's path from the folder that holds all of
them. Every program that reads the csv of folders reads this one, with the same pixels: the pictures keep
their bytes. dataset/packed.py has the format; `tar xf` gives the folders back.

Can be interrupted at any moment and started again with the same command: a shard gets its name when it is
whole, and is then left as it is. A folder that does not hold the frames that the csv says is an error.
"""
# ruff: noqa: E402
from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

from dataset.frame_folder import read_folder
from dataset.frame_series import list_series
from dataset.job_pool import available_cores, show_progress
from dataset.packed import Shard, split_reference, write_shard
from dataset.records import numbered_rows, parse_row
from dataset.video_file import names_video_file
from utils.errors import InputError
from utils.flags import OneLineParser, find_too_small


@dataclass(frozen=True, slots=True)
class Folder:
    """A csv line to pack: its place (``file:line``), the folder, its name in the shard, the label column."""

    where: str
    path: str
    name: str
    num_frames: int
    label: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a user's mistake or a disk that does not take the data, told in one line."""
    parser = OneLineParser(prog="pack_frames.py", description=__doc__)
    parser.add_argument("csv", metavar="CSV", help="frame folders: frame_dir,number_of_frames[,label]")
    parser.add_argument("out", metavar="OUT", help="folder for the shards and the new csv; made if need be")
    parser.add_argument("--per_shard", type=int, default=1000, metavar="N", help="videos in a shard")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), metavar="N", help="shards written at a time"
    )
    flags = parser.parse_args(arguments)
    problem = find_too_small({"--per_shard": (flags.per_shard, 1), "--workers": (flags.workers, 1)})
    if problem:
        parser.error(problem)
    try:
        pack(flags.csv, flags.out, flags.per_shard, flags.workers)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename or flags.out}: {error.strerror}")
    return 0


def pack(csv_path: str, out: str, per_shard: int, workers: int) -> None:
    """Writes the shards that are not there yet, then the csv."""
    packed_csv = os.path.join(out, os.path.basename(csv_path))
    os.makedirs(out, exist_ok=True)
    if os.path.exists(packed_csv) and os.path.samefile(packed_csv, csv_path):
        raise InputError(
            f"{out}: holds {csv_path} itself, expected another folder for the shards and their csv"
        )
    folders = read_folders(csv_path)
    stem = os.path.splitext(os.path.basename(csv_path))[0]
    shards = {
        f"{stem}_{start // per_shard:05d}.tar": folders[start : start + per_shard]
        for start in range(0, len(folders), per_shard)
    }
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = [pool.submit(pack_shard, os.path.join(out, name), members) for name, members in shards.items()]
        written = sum(show_progress((job.result() for job in jobs), len(jobs), "packing", "shards"))
    finally:
        pool.shutdown(cancel_futures=True)
    part = f"{packed_csv}.part"
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for name, members in shards.items():
            writer.writerows(
                [f"{name}/{folder.name}", folder.num_frames, *folder.label] for folder in members
            )
    os.replace(part, packed_csv)
    print(f"{packed_csv}: {len(folders):,} videos in {len(shards):,} shards, {written:,} of them written now")


def read_folders(csv_path: str) -> list[Folder]:
    """Returns the csv's lines, with a name for each video that no other has."""
    base = os.path.dirname(os.path.abspath(csv_path))
    rows = []
    for line, fields in numbered_rows(csv_path):
        where = f"{csv_path}:{line}"
        row = parse_row(fields, False, where, base)
        path = os.path.normpath(row.path)
        if split_reference(path) or (names_video_file(path) and not os.path.isdir(path)):
            raise InputError(
                f"{where}: {path} is no frame folder; only folders are packed (scripts/extract_frames.py)"
            )
        rows.append((where, path, row.num_frames, fields[2:]))
    if not rows:
        raise InputError(f"{csv_path}: names no video")
    common = os.path.commonpath([os.path.dirname(path) for _, path, _, _ in rows])
    first: dict[str, str] = {}
    for where, path, _, _ in rows:
        if first.setdefault(path, where) != where:
            raise InputError(f"{where}: {path} is named a second time, first at {first[path]}")
    return [Folder(where, path, os.path.relpath(path, common), *rest) for where, path, *rest in rows]


def pack_shard(path: str, folders: Sequence[Folder]) -> bool:
    """Returns whether the shard was written: False where it is there already, with these videos."""
    if not os.path.exists(path):
        write_shard(path, ((folder.name, read_pictures(folder)) for folder in folders))
        return True
    there = {name: count for name, (_, count) in Shard(path).videos.items()}
    if there != {folder.name: folder.num_frames for folder in folders}:
        raise InputError(
            f"{path}: is there with other videos than {folders[0].where} and the "
            f"{len(folders) - 1} lines that follow; name an empty OUT, or remove it"
        )
    return False


def read_pictures(folder: Folder) -> Iterator[tuple[str, bytes]]:
    """Yields (file name, bytes) of the folder's frames, which must be as many as the csv says."""
    try:
        series = list_series(folder.path)
        if series.missing or series.count != folder.num_frames:
            gaps = f" and {series.missing} are missing between them" if series.missing else ""
            raise InputError(
                f"{folder.path}: {series.count} frames in it{gaps}, the csv says {folder.num_frames}"
            )
        for path, data in read_folder(folder.path, range(folder.num_frames), folder.num_frames):
            yield os.path.basename(path), data
    except InputError as error:
        raise InputError(f"{folder.where}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
