"""Which videos of a tree are extracted already, which are still to do, and what an interrupted start left."""
from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from dataset.prepare.extraction import PARTIAL, REPLACED, Outcome, Settings, Video
from dataset.prepare.frame_marker import read_marker
from dataset.frames import VIDEO_SUFFIXES
from dataset.prepare.video_tree import NUM_THREADS, find_videos
from utils.errors import InputError
from utils.files import take

REPORT = "extraction_report.csv"
LOCK = ".extraction.lock"
_WAIT_FOR_LOCK_S = 10  # a killed start's processes end within a frame's time


@dataclass(frozen=True, slots=True)
class Plan:
    """All videos in order, the outcomes of those that are done, those to do, and what hidden things to remove."""

    videos: list[Video]
    done: dict[str, Outcome]
    to_do: list[Video]
    leftovers: list[Path]


def plan_extraction(videos: list[Video], redo: bool) -> Plan:
    """Returns what is to do to have each video as a frame folder.

    A video is done when its folder's marker names these settings and a source file of this name and size (its time
    is another after a plain copy). InputError, before anything is touched, for a folder that is there already and
    not of this source and these settings, unless ``redo``.
    """
    there, leftovers = _list_folders(videos)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        states = list(pool.map(lambda video: _state(video) if video.folder in there else None, videos))
    done = {v.name: state for v, state in zip(videos, states) if isinstance(state, Outcome)}
    other = [state for state in states if isinstance(state, str)]
    if other and not redo:
        raise InputError(f"{other[0]}; --redo extracts it again ({len(other)} such folder(s) of {len(videos)})")
    return Plan(videos, done, [v for v in videos if v.name not in done], leftovers)


def list_videos(source: Path, destination: Path, settings: Settings) -> list[Video]:
    """Returns the videos below ``source``, in order, each with its folder below ``destination``; touches nothing.

    InputError: no videos; two that would share a folder, or lie in one another.
    """
    _, files = find_videos(source)
    if not files:
        raise InputError(f"{source}: no video file below it (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    videos = []
    for file in files:
        path = Path(file.path)
        videos.append(Video(path.relative_to(source).as_posix(), path, destination / file.name, settings))
    by_folder: dict[Path, Video] = {}
    for video in videos:
        if video.folder in by_folder:
            raise InputError(f"{source}: {by_folder[video.folder].name} and {video.name} would both become "
                             f"{video.folder}; rename or remove one")
        by_folder[video.folder] = video
    for video in videos:
        for parent in video.folder.parents:
            if parent in by_folder:
                raise InputError(f"{source}: {by_folder[parent].name} would become {parent}, in which "
                                 f"{video.name} has to lie; rename one")
    return videos


def _list_folders(videos: list[Video]) -> tuple[set[Path], list[Path]]:
    """Returns (what lies where the videos' folders belong, what an interrupted start left hidden there)."""
    there: set[Path] = set()
    leftovers = []
    for parent in sorted({video.folder.parent for video in videos}):
        try:
            names = sorted(os.listdir(parent))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{parent}: cannot read the folder: {error.strerror}") from error
        there.update(parent / name for name in names)
        leftovers += [parent / n for n in names if n.startswith(".") and n.endswith((PARTIAL, REPLACED))]
    return there, leftovers


def _state(video: Video) -> Outcome | str:
    """Returns the outcome of a finished folder, or how it differs from what is asked for."""
    found = read_marker(video.folder)
    if found is None:
        return f"{video.folder}: is there, but was not written by this script"
    wanted = replace(video.marker(found.frames, found.note), source_mtime_ns=found.source_mtime_ns)
    if found.settings != wanted.settings:
        names = sorted({*found.settings, *wanted.settings})
        changes = [f"{name} {_text(found.settings.get(name))}, not {_text(wanted.settings.get(name))}"
                   for name in names if found.settings.get(name) != wanted.settings.get(name)]
        return f"{video.folder}: was extracted with {'; '.join(changes)}"
    if found != wanted:
        changes = [f"{name} {getattr(found, name)}, now {getattr(wanted, name)}" for name in asdict(wanted)
                   if getattr(found, name) != getattr(wanted, name)]
        return f"{video.folder}: was extracted from another file than {video.source} ({'; '.join(changes)})"
    return Outcome(found.frames, found.note)


def _text(value: object) -> str:
    return "unset" if value is None else str(value)


def remove_leftovers(leftovers: list[Path]) -> None:
    """Removes what an interrupted start left: folders, or its half report. InputError where that cannot be done."""
    for path in leftovers:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise InputError(f"{path}: cannot remove what an interrupted start left: {error.strerror}") from error


@contextlib.contextmanager
def sole_writer(destination: Path) -> Iterator[Connection]:
    """Makes the folder and holds its lock; gives the descriptor by which other processes hold it too.

    InputError when another extraction writes there, or the folder cannot be written. On a file system without locks
    it says so and goes on.
    """
    path = destination / LOCK
    try:
        destination.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{destination}: cannot write into it: {error.strerror}") from error
    with Connection(descriptor) as held:  # a Connection, because those can be handed to a process
        take(descriptor, str(path), f"{destination}: another extraction is writing into it", _WAIT_FOR_LOCK_S, shared=True)
        yield held


def write_report(destination: Path, plan: Plan, outcomes: dict[str, Outcome]) -> None:
    """Writes DST/extraction_report.csv: path, status (ok, broken, to do), frames, reason; a line a video."""
    path = destination / REPORT
    partial = path.with_name(f".{REPORT}{PARTIAL}")
    try:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("path", "status", "frames", "reason"))
            for video in plan.videos:
                outcome = plan.done.get(video.name) or outcomes.get(video.name)
                if outcome is None:
                    table.writerow((video.name, "to do", "", ""))
                else:
                    status = "ok" if outcome.frames else "broken"
                    table.writerow((video.name, status, outcome.frames, outcome.reason))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write: {error.strerror}") from error
