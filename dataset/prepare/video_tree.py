"""Trees of videos on disk: video files, or the frame folders that extraction made of them."""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dataset.prepare.frame_marker import read_marker
from dataset.frames import VIDEO_SUFFIXES, find_series
from utils.errors import InputError

NUM_THREADS = 16  # what is waited for is the file system


@dataclass(frozen=True, slots=True)
class FoundVideo:
    """A video file or frame folder at ``path``.

    ``name`` is its path below the tree's root, with "/" and without a video file's suffix. ``num_frames`` is
    None where only decoding tells it; ``problem`` says why it cannot be used ("": it can).
    """

    name: str
    path: str
    num_frames: int | None = None
    problem: str = ""

    @property
    def last_name(self) -> str:
        """The video's own name, without its folders."""
        return self.name.rpartition("/")[2]


def find_videos(root: Path) -> tuple[list[FoundVideo], list[FoundVideo]]:
    """Returns (frame folders, video files) below ``root``, each in the order of their names.

    A frame folder is known by its marker, whose frame count is taken as it is, or by numbered pictures, which
    are counted; one with a gap has a problem. Nothing is searched below a frame folder. Hidden files and
    folders are left out, links are followed. InputError when a folder cannot be read or links run in a circle, and
    for a video whose name a csv cannot keep.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folders: list[FoundVideo] = []
    files: list[FoundVideo] = []
    level = [""]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while level:
            below: list[str] = []
            for frame_folder, inner_folders, inner_files in pool.map(lambda name: _look_into(root, name), level):
                folders += [frame_folder] if frame_folder else []
                below += inner_folders
                files += inner_files
            level = below
    for video in (*folders, *files):
        _require_csv_name(video)
    return sorted(folders, key=_order), sorted(files, key=_order)


def _require_csv_name(video: FoundVideo) -> None:
    if any("\ud800" <= sign <= "\udfff" for sign in video.name):  # what Python makes of other bytes
        problem = "is not UTF-8 text"
    elif len(f"{video.name}.".splitlines()) > 1:
        problem = "has a line break"
    elif any(part != part.strip() for part in video.name.split("/")):
        problem = "or that of a folder above it begins or ends with a blank"
    else:
        return
    raise InputError(f"{video.path!a}: its name {problem}, which a csv does not keep; rename it")


def _order(video: FoundVideo) -> tuple[str, str]:
    return video.name, video.path


def _look_into(root: Path, name: str) -> tuple[FoundVideo | None, list[str], list[FoundVideo]]:
    """Returns (the frame folder that this one is, or None; the folders in it; the video files in it)."""
    path = os.path.join(root, name)
    if name and (marker := read_marker(path)):
        return FoundVideo(name, path, marker.frames), [], []
    folders, files, pictures = [], [], []
    try:
        with os.scandir(path) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{path}: cannot read the folder: {error.strerror}") from error
    for entry in entries:
        inner = f"{name}/{entry.name}" if name else entry.name
        stem, suffix = os.path.splitext(inner)
        if entry.is_dir():
            if entry.is_symlink() and Path(path).resolve().is_relative_to(Path(entry.path).resolve()):
                raise InputError(f"{entry.path}: a link to a folder above itself")
            folders.append(inner)
        elif suffix.lower() in VIDEO_SUFFIXES:
            files.append(FoundVideo(stem, entry.path))
        elif suffix.lower() in (".jpg", ".jpeg", ".png"):
            pictures.append(entry.name)
    if name and pictures and not files:
        frame_folder = _counted(name, path, pictures)
        if not (frame_folder.problem and folders):  # else pictures that lie in a folder of folders
            return frame_folder, [], []
    return None, folders, files


def _counted(name: str, path: str, pictures: list[str]) -> FoundVideo:
    try:
        series = find_series(path, pictures)
    except InputError as error:
        return FoundVideo(name, path, None, str(error).removeprefix(f"{path}: "))
    if series.missing:
        gap = series.naming.file_name(series.usable)
        return FoundVideo(name, path, None, f"{series.missing} frame(s) missing, {gap} first")
    return FoundVideo(name, path, series.count)
