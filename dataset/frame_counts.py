"""Numbers of frames of video files for which a csv gives none, kept beside it in `NAME.csv.frame_counts.json`.

The file holds, for each video file by its path relative to the csv's folder, [size in bytes, time of modification in
ns, number of frames]. A video file that has changed since is counted again.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Sequence

from dataset.frames import absolute_path, locate_video
from dataset.records import VideoRecord
from dataset.video_file import count_frames
from utils.errors import InputError, os_error_as_input
from utils.files import show_progress, write_atomically

_THREADS = min(32, 4 * (os.cpu_count() or 1))  # most of the time is spent waiting for the disk


def find_counts(csv_path: str | os.PathLike[str], videos: Sequence[VideoRecord]) -> list[int]:
    """Returns the number of frames of each of the video files, counted by threads where it is not kept already.

    Processes that start together take turns, so that one counts and the others read. If the counts cannot be stored, a
    warning is printed. Raises InputError with `csv:line` for the first file that cannot be counted.
    """
    with open(csv_path, "rb") as file:
        with contextlib.suppress(OSError):  # a file system without locks: each process counts
            fcntl.flock(file, fcntl.LOCK_EX)  # of the csv, as no other file of a read-only folder can be locked
        return _find_counts(csv_path, videos)


def _find_counts(csv_path: str | os.PathLike[str], videos: Sequence[VideoRecord]) -> list[int]:
    store = f"{os.fspath(csv_path)}.frame_counts.json"
    try:
        with open(store, encoding="utf-8") as file:
            kept = json.load(file)
    except FileNotFoundError:
        kept = {}
    except (OSError, ValueError) as error:
        raise InputError(f"{store}: cannot read the kept frame counts ({error}): remove the file") from error
    folder = os.path.dirname(absolute_path(csv_path))
    found, problems = {}, []

    def count(video: VideoRecord) -> None:
        key = os.path.relpath(video.path, folder)
        try:
            if locate_video(video.path).kind != "file":
                raise InputError(f"{video.path}: number of frames (second column) is empty, which only a video file's may "
                                 "be")
            with os_error_as_input(f"{video.path}: cannot open the video file"):
                status = os.stat(video.path)
                stamp = [status.st_size, status.st_mtime_ns]
                entry = kept.get(key)
                found[key] = entry if entry and entry[:2] == stamp else [*stamp, count_frames(video.path)]
        except InputError as error:
            problems.append((video.line, str(error)))

    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        for _ in show_progress(pool.map(count, videos), len(videos), f"{csv_path}: counting frames", "video files"):
            pass
    finally:  # counts found before an interrupt are kept too
        pool.shutdown(cancel_futures=True)
        if any(entry is not kept.get(key) for key, entry in found.items()):
            try:
                write_atomically(store, json.dumps({**kept, **found}))
            except OSError as error:
                print(f"{store}: frame counts not kept, the next start counts again: {error.strerror}",
                      file=sys.stderr, flush=True)
    if problems:
        line, reason = min(problems)
        others = f"; {len(problems) - 1} more video file(s) cannot be counted either" if len(problems) > 1 else ""
        raise InputError(f"{csv_path}:{line}: {reason}{others} (scripts/check_data.py --decode --fix writes a csv "
                         "without them)")
    return [found[os.path.relpath(video.path, folder)][2] for video in videos]
