"""Videos below a folder: video files, or frame folders as extraction writes them."""
from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dataset.frames import FRAME_MARKER, VIDEO_SUFFIXES, SeveralSeriesError, find_series, group_numbers, video_name
from utils.errors import InputError, os_error_as_input
from utils.files import map_in_threads


@dataclass(frozen=True, slots=True)
class FrameMarker:
    """What a finished folder holds: video, number of frames, settings, the source file's size and time, and a note.

    The time is for the reader: a plain copy of the source has another one, so nothing depends on it.
    """

    video: str
    frames: int
    settings: dict[str, Any]
    source_bytes: int
    source_mtime_ns: int
    note: str = ""


def read_marker(folder: str | os.PathLike[str]) -> FrameMarker | None:
    """Returns the folder's marker; None if there is no folder, or no marker in it. InputError if it is damaged."""
    path = os.path.join(folder, FRAME_MARKER)
    try:
        with open(path, encoding="utf-8") as file:
            marker = FrameMarker(**json.load(file))
        if not (isinstance(marker.frames, int) and marker.frames > 0 and isinstance(marker.settings, dict)):
            raise ValueError(marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a marker of extract_frames.py; remove its folder to extract it again") from error
    return marker


@dataclass(frozen=True, slots=True)
class FoundVideo:
    """A video file or frame folder.

    `name` is its path below the root, with "/" and without a video file's suffix, which frame folders may have too;
    `num_frames` is None if only decoding finds out; `problem` is why it cannot be used ("": it can).
    """

    name: str
    path: str
    num_frames: int | None = None
    problem: str = ""

    @property
    def last_name(self) -> str:
        """The video's name without its folders."""
        return self.name.rpartition("/")[2]


class _NumberedImages(NamedTuple):
    """A folder with images and without extraction's marker; the number of images in its longest series, and the error of
    several series."""

    video: FoundVideo
    longest: int
    several: SeveralSeriesError | None = None


def find_videos(root: Path, series: str = "") -> tuple[list[FoundVideo], list[FoundVideo]]:
    """Returns (frame folders, video files) below `root`, each sorted by name.

    A frame folder has extraction's marker, which gives its frame count, or numbered images, which are counted; a gap is a
    problem. `series`: such as `img_*.jpg`, of folders with several series of images. One image in a folder with videos is
    no video. Hidden entries are skipped, links are followed. InputError for a folder that cannot be read, a link to a
    folder above itself, several series of which none is chosen, a frame folder inside another one, and a video whose name
    a csv cannot hold.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folders, images, files, level = [], [], [], [""]
    while level:
        marked, with_images, inner_folders, inner_files = zip(
            *map_in_threads(lambda name: _list_folder(root, name, series), level))
        folders += filter(None, marked)
        images += filter(None, with_images)
        files += itertools.chain(*inner_files)
        level = [*itertools.chain(*inner_folders)]
    folders += _choose_frame_folders(images, [*folders, *files])
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


def _choose_frame_folders(images: list[_NumberedImages], others: list[FoundVideo]) -> list[FoundVideo]:
    """Returns the frame folders among folders with images: not those of one image with videos, such as a preview."""
    videos = others + [found.video for found in images if found.longest > 1]
    above = {parent: video for video in videos for parent in map(str, PurePosixPath(video.name).parents)}
    chosen: dict[str, FoundVideo] = {}
    for video, longest, several in sorted(images, key=lambda found: found.video.name):
        outer = next(filter(None, map(chosen.get, map(str, PurePosixPath(video.name).parents))), None)
        if outer and (longest < 2 or video.problem):
            continue  # inside of a frame folder, such as its preview
        if outer:
            raise InputError(f"{outer.path}: has numbered images and the frame folder {video.path} in it; move one of them, "
                             "as a video is either")
        if longest > 1 or video.name not in above:
            if several:
                raise several
            chosen[video.name] = video
    return list(chosen.values())


def _list_folder(root: Path, name: str,
                 series: str) -> tuple[FoundVideo | None, _NumberedImages | None, list[str], list[FoundVideo]]:
    """Returns (this folder if it has extraction's marker, or if it has images; names of its folders; its video files)."""
    path, own_name = os.path.join(root, name), os.path.join(os.path.dirname(name), video_name(name))
    if name and (marker := read_marker(path)):
        return FoundVideo(own_name, path, marker.frames), None, [], []
    folders, files, images = [], [], []
    with os_error_as_input(f"{path}: cannot read the folder"), os.scandir(path) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".")]
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
    if not (name and images):
        return None, None, folders, files
    longest, several = max(map(len, group_numbers(images).values()), default=0), None
    path = os.path.join(path, series)
    video = FoundVideo(own_name, path.rstrip("/"))
    try:
        frames = find_series(video.path, images)
        gap = f"{frames.missing} frame(s) missing, {frames.naming.file_name(frames.usable)} first" if frames.missing else ""
        video = replace(video, num_frames=None if gap else frames.count, problem=gap)
    except InputError as error:
        several = error if isinstance(error, SeveralSeriesError) else None
        video = replace(video, problem=str(error).removeprefix(f"{video.path}: "))
    return None, _NumberedImages(video, longest, several), folders, files
