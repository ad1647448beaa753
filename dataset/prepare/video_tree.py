"""Videos below a folder: video files, or frame folders as extraction writes them."""
from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from dataset.frames import VIDEO_SUFFIXES, find_series
from dataset.prepare.frame_marker import read_marker
from utils.errors import InputError

NUM_THREADS = 16  # they wait for the file system


@dataclass(frozen=True, slots=True)
class FoundVideo:
    """A video file or frame folder.

    `name` is its path below the root, with "/" and without a video file's suffix; `num_frames` is None if only decoding
    finds out; `problem` is why it cannot be used ("": it can).
    """

    name: str
    path: str
    num_frames: int | None = None
    problem: str = ""

    @property
    def last_name(self) -> str:
        """The video's name without its folders."""
        return self.name.rpartition("/")[2]


def find_videos(root: Path) -> tuple[list[FoundVideo], list[FoundVideo]]:
    """Returns (frame folders, video files) below `root`, each sorted by name.

    A frame folder has extraction's marker, which gives its frame count, or numbered images, which are counted; a gap is a
    problem. Its inside is not searched. Hidden entries are skipped, links are followed. InputError for a folder that cannot
    be read, a link to a folder above itself, and a video whose name a csv cannot hold.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folders, files, level = [], [], [""]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while level:
            frame_folders, inner_folders, inner_files = zip(*pool.map(lambda name: _list_folder(root, name), level))
            folders += filter(None, frame_folders)
            files += itertools.chain(*inner_files)
            level = [*itertools.chain(*inner_folders)]
    for video in (*folders, *files):
        if any("\ud800" <= sign <= "\udfff" for sign in video.name):  # how Python decodes other bytes
            problem = "is not UTF-8 text"
        elif len(f"{video.name}.".splitlines()) > 1:
            problem = "has a line break"
        elif any(part != part.strip() for part in video.name.split("/")):
            problem = "or that of a folder above it begins or ends with a blank"
        else:
            continue
        raise InputError(f"{video.path!a}: its name {problem}, which a csv cannot hold; rename it")
    return sorted(folders, key=attrgetter("name", "path")), sorted(files, key=attrgetter("name", "path"))


def _list_folder(root: Path, name: str) -> tuple[FoundVideo | None, list[str], list[FoundVideo]]:
    """Returns (this folder if it is a frame folder; names of the folders in it; video files in it)."""
    path = os.path.join(root, name)
    if name and (marker := read_marker(path)):
        return FoundVideo(name, path, marker.frames), [], []
    folders, files, images = [], [], []
    try:
        with os.scandir(path) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{path}: cannot read the folder: {error.strerror}") from error
    for entry in entries:
        stem, suffix = os.path.splitext(f"{name}/{entry.name}" if name else entry.name)
        if entry.is_dir():
            if entry.is_symlink() and Path(path).resolve().is_relative_to(Path(entry.path).resolve()):
                raise InputError(f"{entry.path}: a link to a folder above itself")
            folders.append(stem + suffix)
        elif suffix.lower() in VIDEO_SUFFIXES:
            files.append(FoundVideo(stem, entry.path))
        elif suffix.lower() in (".jpg", ".jpeg", ".png"):
            images.append(entry.name)
    if name and images and not files:
        try:
            series = find_series(path, images)
            problem = f"{series.missing} frame(s) missing, {series.naming.file_name(series.usable)} first"
            frame_folder = FoundVideo(name, path, None, problem) if series.missing else FoundVideo(name, path, series.count)
        except InputError as error:
            frame_folder = FoundVideo(name, path, None, str(error).removeprefix(f"{path}: "))
        if not (frame_folder.problem and folders):  # otherwise images that lie in a folder of folders
            return frame_folder, [], []
    return None, folders, files
