"""Numbers of frames of the video files for which a csv gives none, kept in a file beside the csv.

``NAME.csv.frame_counts.json`` holds, for each video file by its path from the csv's folder, its size in
bytes, its time of change in ns, and its number of frames. A file that has changed since is counted anew.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence

from dataset.video_file import count_frames
from utils.errors import InputError
from utils.files import show_progress

_THREADS = min(32, 4 * (os.cpu_count() or 1))  # most of the time goes into waiting for the disk


def find_counts(csv_path: str | os.PathLike[str], videos: Sequence[tuple[int, str]]) -> list[int]:
    """Returns the number of frames of each of ``videos``: (csv line, path of the video file).

    Counts that are not kept beside the csv are found by many threads, with progress on stderr, and
    kept. Processes that start together take turns, so that one counts and the others read. Where the folder
    cannot be written to, that is said, and the next start counts again.

    Raises InputError with ``csv:line`` for the first line whose file cannot be counted, and the number of others.
    """
    if not videos:
        return []
    with _turn(csv_path):
        return _find_counts(csv_path, videos)


def _find_counts(csv_path: str | os.PathLike[str], videos: Sequence[tuple[int, str]]) -> list[int]:
    folder = os.path.dirname(os.path.abspath(csv_path))
    keys = [os.path.relpath(path, folder) for _, path in videos]
    kept = _load(csv_path)

    def count(key: str, line: int, path: str) -> list[int]:
        try:
            try:
                status = os.stat(path)
            except OSError as error:
                raise InputError(f"{path}: cannot open the video file: {error.strerror}") from error
            stamp = [status.st_size, status.st_mtime_ns]
            entry = kept.get(key)
            return entry if entry and entry[:2] == stamp else [*stamp, count_frames(path)]
        except InputError as error:
            raise InputError(f"{csv_path}:{line}: {error}") from error

    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    jobs = [pool.submit(count, key, line, path) for key, (line, path) in zip(keys, videos)]
    broken = []
    try:
        for job in show_progress(jobs, len(jobs), f"{csv_path}: counting frames", "video files"):
            try:
                job.result()
            except InputError as error:
                broken.append(error)
    finally:  # also after another error or an interrupt, what was counted is kept
        pool.shutdown(cancel_futures=True)
        done = [job.done() and not job.cancelled() and not job.exception() for job in jobs]
        found = {key: job.result() for key, job, good in zip(keys, jobs, done) if good}
        if any(entry is not kept.get(key) for key, entry in found.items()):
            _save(csv_path, {**kept, **found})
    if broken:
        others = f"; {len(broken) - 1} more video file(s) cannot be counted either" if len(broken) > 1 else ""
        raise InputError(f"{broken[0]}{others} (scripts/check_data.py --decode --fix writes a csv without them)")
    return [found[key][2] for key in keys]


@contextlib.contextmanager
def _turn(csv_path: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock on the csv file. A file system without locks lets all go at once, which costs but time."""
    with open(csv_path, "rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept_path(csv_path: str | os.PathLike[str]) -> str:
    return f"{os.fspath(csv_path)}.frame_counts.json"


def _load(csv_path: str | os.PathLike[str]) -> dict[str, list[int]]:
    path = _kept_path(csv_path)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the kept frame counts ({error}): remove the file") from error


def _save(csv_path: str | os.PathLike[str], counts: dict[str, list[int]]) -> None:
    path = _kept_path(csv_path)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(counts, file)
        os.replace(part, path)
    except OSError as error:
        print(
            f"{path}: frame counts not kept, the next start counts again: {error.strerror}",
            file=sys.stderr,
            flush=True,
        )
