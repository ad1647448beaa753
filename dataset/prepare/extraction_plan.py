"""Which videos of a tree are already extracted and which are to do, and the report on all of them."""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.frames import VIDEO_SUFFIXES
from dataset.prepare.extraction import ExtractionResult, FrameSettings, SourceVideo, read_marker
from dataset.prepare.video_tree import NUM_THREADS, find_videos
from utils.errors import InputError

if TYPE_CHECKING:
    import pandas


def list_videos(source: Path, destination: Path, settings: FrameSettings) -> list[SourceVideo]:
    """Returns the videos below `source`, in order, each with its folder below `destination`; changes nothing.

    InputError: no videos; two whose folders would be the same, or one inside the other.
    """
    _, files = find_videos(source)
    if not files:
        raise InputError(f"{source}: no video file below it (searched for {' '.join(sorted(VIDEO_SUFFIXES))})")
    videos = [SourceVideo(Path(file.path).relative_to(source).as_posix(), Path(file.path), destination / file.name, settings)
              for file in files]
    by_folder: dict[Path, SourceVideo] = {}
    for video in videos:
        other = by_folder.setdefault(video.folder, video)
        if other is not video:
            raise InputError(f"{source}: {other.name} and {video.name} would both become {video.folder}; rename one")
    for video in videos:
        for parent in video.folder.parents:
            if parent in by_folder:
                raise InputError(f"{source}: {by_folder[parent].name} would become {parent}, which has to contain "
                                 f"{video.name}; rename one")
    return videos


def find_results(videos: list[SourceVideo], redo: bool) -> dict[str, ExtractionResult | None]:
    """Returns video name -> result of its finished folder, None for a video that is to do; changes nothing.

    A folder is finished if its marker has the same settings and a source file of the same name and size (a plain copy has
    another time). InputError for an existing folder of another source or other settings, unless `redo`.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(_find_result, videos))
    differences = [result for result in found if isinstance(result, str)]
    if differences and not redo:
        raise InputError(f"{differences[0]}; --redo extracts it again ({len(differences)} such folder(s) of {len(videos)})")
    return {video.name: None if isinstance(result, str) else result for video, result in zip(videos, found)}


def _find_result(video: SourceVideo) -> ExtractionResult | str | None:
    """Returns the result of a finished folder, None if there is none, or how it differs from what is wanted."""
    found = read_marker(video.folder)
    if found is None:
        return f"{video.folder}: exists, but was not written by this script" if os.path.lexists(video.folder) else None
    wanted = replace(video.marker(found.frames, found.note), source_mtime_ns=found.source_mtime_ns)
    if found.settings != wanted.settings:
        return f"{video.folder}: was extracted with {_differences(found.settings, wanted.settings, 'not')}"
    if found != wanted:
        return (f"{video.folder}: was extracted from another file than {video.source} "
                f"({_differences(asdict(found), asdict(wanted), 'now')})")
    return ExtractionResult(found.frames, found.note)


def _differences(found: dict[str, Any], wanted: dict[str, Any], joint: str) -> str:
    """Returns "NAME OLD, JOINT NEW" of the entries that differ."""
    values = {name: ["unset" if side.get(name) is None else side[name] for side in (found, wanted)]
              for name in sorted({*found, *wanted})}
    return "; ".join(f"{name} {old}, {joint} {new}" for name, (old, new) in values.items() if old != new)


def make_report(results: dict[str, ExtractionResult | None]) -> pandas.DataFrame:
    """Returns the columns path, status ("ok", "broken", "to do"), frames and reason, one row per video."""
    import pandas

    rows = [(name, "to do", None, "") if result is None else
            (name, "ok" if result.frames else "broken", result.frames, result.reason) for name, result in results.items()]
    return pandas.DataFrame(rows, columns=["path", "status", "frames", "reason"]).astype({"frames": "Int64"})
