"""Packing of the frame folders of csv files into shards, and the csv files that list the videos in them."""
from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

from dataset.frames import find_series, locate_video, read_folder, split_series
from dataset.packed import Shard, write_shard
from dataset.records import VideoRecord, read_rows, write_records
from utils.errors import InputError, name_some
from utils.files import hold_lock, show_progress

LOCK = ".packing.lock"
SHARD_NAME = "shard_{:05d}.tar"


class FolderToPack(NamedTuple):
    """A frame folder: the csv line (`file:line`) that gives the most frames, its path, its name in the shard."""

    where: str
    path: str
    name: str
    num_frames: int


def pack_csv_files(csv_paths: Sequence[str], out: str, per_shard: int, workers: int) -> None:
    """Writes the shards that are missing or outdated, then the csv files, to the folder `out`; prints what was done."""
    if os.path.isfile(out):
        raise InputError(f"{out}: is a file, expected the folder for the shards as the last path")
    names = list(map(os.path.basename, csv_paths))
    for path, name in zip(csv_paths, names):
        new_path = os.path.join(out, name)
        if names.count(name) > 1:
            raise InputError(f"{path}: the csv file, or another of the same name, is given twice; both would be {new_path}")
        if os.path.exists(new_path) and os.path.exists(path) and os.path.samefile(new_path, path):
            raise InputError(f"{out}: contains {path} itself, expected another folder for the shards and their csv")
    records, folders = read_folders(csv_paths)
    shards = {os.path.join(out, SHARD_NAME.format(number)): folders[start : start + per_shard]
              for number, start in enumerate(range(0, len(folders), per_shard))}
    os.makedirs(out, exist_ok=True)
    with hold_lock(os.path.join(out, LOCK), f"{out}: another pack_frames.py is writing into it"):
        pool, stop = ThreadPoolExecutor(workers), threading.Event()
        try:
            jobs = [pool.submit(pack_shard, shard, members, stop) for shard, members in shards.items()]
            counts = Counter(show_progress((job.result() for job in jobs), len(jobs), "packing", "shards"))
        finally:  # an error or an interrupt ends all threads at their next frame
            stop.set()
            pool.shutdown(cancel_futures=True)
        places = {folder.path: os.path.join(shard, folder.name) for shard, members in shards.items() for folder in members}
        for path, name in zip(csv_paths, names):
            packed = [replace(record, path=places[record.path]) for record in records[path]]
            write_records(os.path.join(out, name), packed, labelled=packed[0].label is not None)
    print(f"{out}: {len(folders):,} videos; shards: {counts['new'] + counts['outdated']:,} written, "
          f"{counts['current']:,} were there already; {', '.join(names)}")
    if counts["outdated"]:
        print(f"  {counts['outdated']:,} of them rewritten: their frame folders have changed since they were packed")


def read_folders(csv_paths: Sequence[str]) -> tuple[dict[str, list[VideoRecord]], list[FolderToPack]]:
    """Returns (csv path -> its lines; the folders that they list, each once, in order, with distinct names).

    InputError for a line that is not a frame folder, or lists the folder of a line before it in its csv.
    """
    records: dict[str, list[VideoRecord]] = {}
    longest: dict[str, tuple[int, str]] = {}
    for csv_path in csv_paths:
        records[csv_path], bad_rows = read_rows(csv_path)
        if not records[csv_path]:  # a third column that holds no labels, which pretraining ignores
            records[csv_path], bad_rows = read_rows(csv_path, labelled=False)
        if bad_rows:
            raise InputError(f"{csv_path}:{bad_rows[0].line}: {bad_rows[0].reason}")
        lines: dict[str, int] = {}
        again = []
        for record in records[csv_path]:
            path, where = record.path, f"{csv_path}:{record.line}"
            if record.num_frames is None or locate_video(path).kind != "folder":
                raise InputError(f"{where}: {path}: expected a frame folder and its number of frames "
                                 "(scripts/extract_frames.py makes one of a video file)")
            if lines.setdefault(path, record.line) != record.line:
                again.append(f"{where}: {path} is listed a second time, first at {csv_path}:{lines[path]}")
            longest[path] = max(longest.get(path, (-1, "")), (record.num_frames, where), key=itemgetter(0))
        if again:
            raise InputError(name_some(again))
    places = {path: split_series(path)[0] for path in longest}
    common, times = os.path.commonpath(map(os.path.dirname, places.values())), Counter(places.values())
    return records, [FolderToPack(where, path, os.path.relpath(path if times[places[path]] > 1 else places[path], common),
                                  num_frames) for path, (num_frames, where) in longest.items()]


def pack_shard(path: str, folders: Sequence[FolderToPack], stop: threading.Event) -> str:
    """Returns the state that the shard had: "current", "new" (missing) or "outdated", after writing the last two.

    A shard's `source` is a hash of its videos' names, and one that changes when a folder does.
    """
    names = "\0".join(folder.name for folder in folders)
    states = "".join(folder_state(folder, stop) for folder in folders)
    source = b"".join(hashlib.blake2b(os.fsencode(text), digest_size=16).digest() for text in (names, states))
    found = Shard(path).source if os.path.exists(path) else None
    if found == source:
        return "current"
    if found and found[:16] != source[:16]:
        raise InputError(f"{path}: exists with other videos than {folders[0].where} and the {len(folders) - 1} that follow; "
                         "choose an empty OUT, or remove it")
    write_shard(path, ((folder.name, read_images(folder, stop)) for folder in folders), source)
    return "outdated" if found else "new"


def folder_state(folder: FolderToPack, stop: threading.Event) -> str:
    """Returns text that changes when the folder does. InputError if it lacks a frame to pack."""
    if stop.is_set():
        raise CancelledError
    try:
        series = find_series(folder.path)
    except InputError as error:
        raise InputError(f"{folder.where}: {error}") from error
    if series.usable < folder.num_frames:
        gaps = f" with {series.missing} missing between them" if series.missing else ""
        raise InputError(f"{folder.where}: {folder.path}: has {series.count} frames{gaps}, the csv says {folder.num_frames}")
    packed = range(folder.num_frames)
    place = split_series(folder.path)[0]
    ends = [os.stat(os.path.join(place, series.naming.file_name(index))) for index in (*packed[:1], *packed[-1:])]
    return f"{len(packed)} {os.stat(place).st_mtime_ns} {[(end.st_size, end.st_mtime_ns) for end in ends]}\n"


def read_images(folder: FolderToPack, stop: threading.Event) -> Iterator[tuple[str, bytes]]:
    """Yields (file name, content) of the frames to pack."""
    try:
        for path, data in read_folder(folder.path, range(folder.num_frames), folder.num_frames):
            if stop.is_set():
                raise CancelledError
            yield os.path.basename(path), data
    except InputError as error:
        raise InputError(f"{folder.where}: {error}") from error
