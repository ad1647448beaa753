"""Which videos of a tree are already extracted, which are to do, and what an interrupted run left behind."""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.frames import VIDEO_SUFFIXES
from dataset.prepare.extraction import PARTIAL, REPLACED, ExtractionResult, FrameSettings, SourceVideo
from dataset.prepare.frame_marker import read_marker
from dataset.prepare.video_tree import NUM_THREADS, find_videos
from utils.errors import InputError

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """All videos in order, the results of those that are done, those to do, and hidden folders to remove."""

    videos: list[SourceVideo]
    done: dict[str, ExtractionResult]
    to_do: list[SourceVideo]
    leftovers: list[Path]


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
            raise InputError(f"{source}: {other.name} and {video.name} would both become {video.folder}; "
                             "rename or remove one")
    for video in videos:
        for parent in video.folder.parents:
            if parent in by_folder:
                raise InputError(f"{source}: {by_folder[parent].name} would become {parent}, which has to contain "
                                 f"{video.name}; rename one")
    return videos


def plan_extraction(videos: list[SourceVideo], redo: bool) -> ExtractionPlan:
    """Returns what is to do to have a frame folder for each video; changes nothing.

    A video is done when the marker of its folder has these settings and a source file of this name and size (a plain
    copy has another time). InputError for an existing folder of another source or other settings, unless `redo`.
    """
    existing: set[Path] = set()
    leftovers = []
    for parent in sorted({video.folder.parent for video in videos}):
        try:
            names = sorted(os.listdir(parent))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{parent}: cannot read the folder: {error.strerror}") from error
        existing.update(parent / name for name in names)
        leftovers += [parent / name for name in names if name.startswith(".") and name.endswith((PARTIAL, REPLACED))]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(lambda video: _find_result(video) if video.folder in existing else None, videos))
    done = {video.name: result for video, result in zip(videos, found) if isinstance(result, ExtractionResult)}
    differences = [result for result in found if isinstance(result, str)]
    if differences and not redo:
        raise InputError(f"{differences[0]}; --redo extracts it again ({len(differences)} such folder(s) of {len(videos)})")
    return ExtractionPlan(videos, done, [video for video in videos if video.name not in done], leftovers)


def _find_result(video: SourceVideo) -> ExtractionResult | str:
    """Returns the result of a finished folder, or how the folder differs from what is wanted."""
    found = read_marker(video.folder)
    if found is None:
        return f"{video.folder}: exists, but was not written by this script"
    wanted = replace(video.marker(found.frames, found.note), source_mtime_ns=found.source_mtime_ns)
    if found.settings != wanted.settings:
        changes = _differences(found.settings, wanted.settings, "not")
        return f"{video.folder}: was extracted with {changes}"
    if found != wanted:
        changes = _differences(asdict(found), asdict(wanted), "now")
        return f"{video.folder}: was extracted from another file than {video.source} ({changes})"
    return ExtractionResult(found.frames, found.note)


def _differences(found: dict[str, Any], wanted: dict[str, Any], joint: str) -> str:
    """Returns "NAME OLD, JOINT NEW" of the entries that differ."""
    unset = {name: "unset" for name in sorted({*found, *wanted})}
    old, new = ({**unset, **{name: value for name, value in side.items() if value is not None}} for side in (found, wanted))
    return "; ".join(f"{name} {old[name]}, {joint} {new[name]}" for name in unset if old[name] != new[name])


def make_report(plan: ExtractionPlan, results: dict[str, ExtractionResult]) -> pandas.DataFrame:
    """Returns the columns path, status ("ok", "broken", "to do"), frames, reason, one row per video."""
    import pandas

    rows = []
    for video in plan.videos:
        result = plan.done.get(video.name) or results.get(video.name)
        status = "to do" if result is None else "ok" if result.frames else "broken"
        rows.append((video.name, status, result and result.frames, result.reason if result else ""))
    return pandas.DataFrame(rows, columns=["path", "status", "frames", "reason"]).astype({"frames": "Int64"})
