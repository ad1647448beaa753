"""Pack the frame folders of csv files into tar files ("shards"), for disks that limit the number of files.

    python scripts/pack_frames.py data/ucf101/pretrain.csv data/ucf101/train_1.csv data/ucf101/test_1.csv packed

writes packed/shard_00000.tar, packed/shard_00001.tar, ... with --per_shard videos each, in the order in which
the csv files name them first, and each video once; and at the end packed/pretrain.csv and so on, whose lines name
the videos in them: shard_00000.tar/VIDEO,number_of_frames[,label]. VIDEO is the folder's path from the folder
that holds all of them. Every program that reads the csv files of folders reads these, with the same pixels: the
pictures keep their bytes. dataset/packed.py has the format; `tar xf` gives the folders back.

Can be interrupted at any moment and started again with the same command: a shard gets its name when it is
whole, and is then left as it is, unless its folders have changed since, which is said. They have if a folder's
time, or the first or last packed frame's size or time, is another. Of a folder the frames that the csv says are
packed (the most that one of the csv files says); a folder that lacks one of them is an error.

Exit status: 0; 2 a user's mistake or a disk that does not take the data, told in one line; 130 interrupted.
"""
# ruff: noqa: E402
from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

from dataset.frames import find_series, is_video_file, read_folder, split_packed_path
from dataset.prepare.worker_pool import available_cores
from dataset.packed import Shard, write_shard
from dataset.records import read_rows as records_of
from utils.errors import INTERRUPTED, InputError, report
from utils.cli import OneLineParser, find_too_small
from utils.files import show_progress, take

LOCK = ".packing.lock"
SHARD_NAME = "shard_{:05d}.tar"


@dataclass(frozen=True, slots=True)
class Row:
    """A csv line: its place (``file:line``), the folder, the number of frames, the label column."""

    where: str
    path: str
    num_frames: int
    label: list[str]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to pack: the csv line that says the most frames, the folder, its name in the shard."""

    where: str
    path: str
    name: str
    num_frames: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status, as the module's docstring has it."""
    parser = OneLineParser(prog="pack_frames.py", description=__doc__)
    parser.add_argument("csv", nargs="+", metavar="CSV", help="frame folders: frame_dir,number_of_frames[,label]")
    parser.add_argument("out", metavar="OUT", help="folder for the shards and the new csv files; made if need be")
    parser.add_argument("--per_shard", type=int, default=1000, metavar="N", help="videos in a shard")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), metavar="N", help="shards written at a time"
    )
    flags = parser.parse_args(arguments)
    problem = find_too_small({"--per_shard": (flags.per_shard, 1), "--workers": (flags.workers, 1)})
    if problem:
        parser.error(problem)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's notice ends it as Ctrl-C does
    try:
        pack(flags.csv, flags.out, flags.per_shard, flags.workers)
    except InputError as error:
        return report(error, parser.prog)
    except OSError as error:
        return report(InputError(f"{error.filename or flags.out}: {error.strerror}"), parser.prog)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def pack(csv_paths: Sequence[str], out: str, per_shard: int, workers: int) -> None:
    """Writes the shards that are not there yet or have changed, then the csv files."""
    if os.path.isfile(out):
        raise InputError(f"{out}: is a file, expected the folder for the shards as the last path")
    new_paths = name_new_csvs(csv_paths, out)
    rows = {path: read_rows(path) for path in csv_paths}
    folders = list_folders(rows)
    shards = {
        SHARD_NAME.format(number): folders[start : start + per_shard]
        for number, start in enumerate(range(0, len(folders), per_shard))
    }
    os.makedirs(out, exist_ok=True)
    with sole_packer(out):
        done = pack_shards({os.path.join(out, name): members for name, members in shards.items()}, workers)
        places = {folder.path: f"{name}/{folder.name}" for name, members in shards.items() for folder in members}
        for csv_path, new_path in new_paths.items():
            write_csv(new_path, [[places[row.path], row.num_frames, *row.label] for row in rows[csv_path]])
    print(f"{out}: {len(folders):,} videos; shards: {done['new'] + done['anew']:,} written, "
          f"{done['there']:,} were there already; {', '.join(map(os.path.basename, new_paths.values()))}")
    if done["anew"]:
        print(f"  {done['anew']:,} of them anew: their frame folders have changed since they were packed")


def name_new_csvs(csv_paths: Sequence[str], out: str) -> dict[str, str]:
    """Returns the path of the new csv for each csv. InputError if two would be one, or it is the csv itself."""
    new_paths: dict[str, str] = {}
    for path in csv_paths:
        new_path = os.path.join(out, os.path.basename(path))
        if path in new_paths or new_path in new_paths.values():
            raise InputError(f"{path}: a csv file is given twice, or two have one name, as their copies would in {out}")
        if os.path.exists(new_path) and os.path.exists(path) and os.path.samefile(new_path, path):
            raise InputError(f"{out}: holds {path} itself, expected another folder for the shards and their csv")
        new_paths[path] = new_path
    return new_paths


def read_rows(csv_path: str) -> list[Row]:
    """Returns the csv's lines, of which no two name one folder. Labels are kept where all lines have one."""
    records, bad_rows = records_of(csv_path)
    if bad_rows:
        records, bad_rows = records_of(csv_path, labelled=False)
    if bad_rows:
        raise InputError(f"{csv_path}:{bad_rows[0].line}: {bad_rows[0].reason}")
    rows: dict[str, Row] = {}
    for record in records:
        where, path = f"{csv_path}:{record.line}", record.path
        if split_packed_path(path) or is_video_file(path):
            raise InputError(
                f"{where}: {path} is no frame folder; only folders are packed (scripts/extract_frames.py)"
            )
        if record.num_frames is None:
            raise InputError(f"{where}: number of frames (second column) is '', expected an integer from 0")
        if path in rows:
            raise InputError(f"{where}: {path} is named a second time, first at {rows[path].where}")
        rows[path] = Row(where, path, record.num_frames, [] if record.label is None else [str(record.label)])
    return list(rows.values())


def list_folders(rows: dict[str, list[Row]]) -> list[Folder]:
    """Returns the folders that the csv files name, each once, with a name that no other has."""
    most: dict[str, Row] = {}
    for row in (row for csv_rows in rows.values() for row in csv_rows):
        if row.path not in most or row.num_frames > most[row.path].num_frames:
            most[row.path] = row
    common = os.path.commonpath([os.path.dirname(path) for path in most])
    return [Folder(row.where, path, os.path.relpath(path, common), row.num_frames) for path, row in most.items()]


@contextlib.contextmanager
def sole_packer(out: str) -> Iterator[None]:
    """Holds the lock of the folder. InputError when another process packs into it; where there are no locks, says so."""
    path = os.path.join(out, LOCK)
    with open(path, "wb") as file:
        take(file.fileno(), path, f"{out}: another pack_frames.py is writing into it", shared=True)
        yield


def pack_shards(shards: dict[str, Sequence[Folder]], workers: int) -> Counter[str]:
    """Returns how many shards were "there", "new", or written "anew". Whatever ends it ends all at their next frame."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = [pool.submit(pack_shard, path, members, stop) for path, members in shards.items()]
        return Counter(show_progress((job.result() for job in jobs), len(jobs), "packing", "shards"))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def pack_shard(path: str, folders: Sequence[Folder], stop: threading.Event) -> str:
    """Returns what became of the shard: "there" with these folders as they are, "new", or written "anew"."""
    names = hashlib.blake2b("\0".join(folder.name for folder in folders).encode(), digest_size=16)
    states = hashlib.blake2b(digest_size=16)
    for folder in folders:
        states.update(state(folder).encode())
        if stop.is_set():
            raise CancelledError
    source = names.digest() + states.digest()
    became = "new"
    if os.path.exists(path):
        there = Shard(path).source
        if there[:16] != source[:16]:
            raise InputError(
                f"{path}: is there with other videos than {folders[0].where} and the "
                f"{len(folders) - 1} that follow; name an empty OUT, or remove it"
            )
        if there == source:
            return "there"
        became = "anew"
    write_shard(path, ((folder.name, read_pictures(folder, stop)) for folder in folders), source)
    return became


def state(folder: Folder) -> str:
    """Returns by what a later start sees that the folder has changed. InputError if it lacks a frame to pack."""
    try:
        series = find_series(folder.path)
    except InputError as error:
        raise InputError(f"{folder.where}: {error}") from error
    if series.usable < folder.num_frames:
        gaps = f" and {series.missing} are missing between them" if series.missing else ""
        raise InputError(f"{folder.where}: {folder.path}: {series.count} frames in it{gaps}, "
                         f"the csv says {folder.num_frames}")
    packed = range(folder.num_frames)
    ends = [os.stat(os.path.join(folder.path, series.naming.file_name(index))) for index in (*packed[:1], *packed[-1:])]
    return f"{len(packed)} {os.stat(folder.path).st_mtime_ns} {[(end.st_size, end.st_mtime_ns) for end in ends]}\n"


def read_pictures(folder: Folder, stop: threading.Event) -> Iterator[tuple[str, bytes]]:
    """Yields (file name, bytes) of the folder's frames that are packed."""
    try:
        for path, data in read_folder(folder.path, range(folder.num_frames), folder.num_frames):
            if stop.is_set():
                raise CancelledError
            yield os.path.basename(path), data
    except InputError as error:
        raise InputError(f"{folder.where}: {error}") from error


def write_csv(path: str, lines: Sequence[Sequence[object]]) -> None:
    """Writes the csv whole or not at all."""
    part = f"{path}.part"
    with open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
