"""Extraction of a tree of videos into frame folders, each of which is either complete and marked as finished, or absent."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.frames import FRAME_MARKER, VIDEO_SUFFIXES, resize_frames, write_frame
from dataset.prepare.video_tree import FrameMarker, find_videos, read_marker
from dataset.prepare.worker_pool import Crash, run_jobs
from dataset.video_file import iterate_frames, promised_frames, shortage
from utils.cli import check_values, parse_size
from utils.errors import INTERRUPTED, InputError, name_some, os_error_as_input
from utils.files import hold_lock, map_in_threads, show_progress, write_atomically

REPORT = "extraction_report.csv"
LOCK = ".extraction.lock"
WAIT_FOR_LOCK_S = 10
NAMED_BROKEN = 5  # videos on the terminal
PARTIAL, REPLACED = ".partial", ".earlier"  # suffixes of the hidden folders beside one that is being written
SMALLEST_SIDE_PX, LARGEST_SIDE_PX = 8, 65_500  # the largest that libjpeg writes
LONGEST_STILL_S = 10  # with --fps: a frame is repeated for this long at most
_SAME_TIME_S = 1e-6


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """What determines a video's frames besides the video; stored in the folder's marker.

    `size` is WIDTHxHEIGHT in px; `short_side` px keeps the aspect ratio; `fps` None keeps every frame.
    """

    short_side: int | None = None
    size: str | None = None
    fps: float | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side is not None and self.size is not None:
            raise InputError("--short_side and --size: expected one of them")
        check_values(at_least={"--short_side": (self.short_side, SMALLEST_SIDE_PX)})
        if self.size is not None:
            _check_writable(parse_size(self.size, SMALLEST_SIDE_PX), f"--size {self.size}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"--fps {self.fps:g}: must be above 0 and at most 1000")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: must be from 1 to 100")

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) in px of the frames written for a video of this size."""
        if self.size is not None:
            return parse_size(self.size, SMALLEST_SIDE_PX)
        short = min(width, height)
        scale = self.short_side or short
        return max(1, round(width * scale / short)), max(1, round(height * scale / short))


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One video file (`name`: its path below the source folder), the folder of its frames, and the settings."""

    name: str
    source: Path
    folder: Path
    settings: FrameSettings

    @property
    def partial(self) -> Path:
        """The hidden folder in which the frames are written, named by a hash as a folder's own name may be too long."""
        return self.folder.with_name(f".{hashlib.sha256(os.fsencode(self.folder.name)).hexdigest()[:16]}{PARTIAL}")

    def marker(self) -> FrameMarker:
        """Returns the marker of a folder for the source file as it is now, of 0 frames. InputError if it cannot be read."""
        with os_error_as_input(f"{self.source}: cannot read"):
            status = self.source.stat()
        return FrameMarker(self.source.name, 0, asdict(self.settings), status.st_size, status.st_mtime_ns)


class ExtractionResult(NamedTuple):
    """Number of frames written (0: the video is broken), and the reason or a note."""

    frames: int
    reason: str = ""


def extract_tree(source: Path, destination: Path, settings: FrameSettings, redo: bool, num_workers: int) -> int:
    """Returns the exit status of extracting the videos below `source` to folders below `destination`, with a report.

    `redo`: extract those again whose folder has other settings, another source or no marker, instead of an InputError.
    """
    videos = list_videos(source, destination, settings)
    busy = f"{destination}: another extraction is writing into it"
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with hold_lock(destination / LOCK, busy, WAIT_FOR_LOCK_S, f"{busy}; waiting {WAIT_FOR_LOCK_S} s"):
            return extract_videos(videos, find_results(videos, redo), destination, num_workers)
    except OSError as error:
        raise InputError(f"{error.filename or destination}: cannot write: {error.strerror}") from error


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
    conflicts = []
    for video in videos:  # sorted by name, so that a folder is known before what would be inside it
        other = by_folder.setdefault(video.folder, video)
        if other is not video:
            conflicts.append(f"{other.name} and {video.name} would both become {video.folder}")
        for parent in filter(by_folder.get, video.folder.parents):
            conflicts.append(f"{by_folder[parent].name} would become {parent}, which has to contain {video.name}")
    if conflicts:
        raise InputError(f"{source}: {name_some(conflicts)}; rename one" + " of each" * (len(conflicts) > 1))
    return videos


def find_results(videos: list[SourceVideo], redo: bool) -> dict[str, ExtractionResult | None]:
    """Returns video name -> result of its finished folder, None for a video that is to do; changes nothing.

    A folder is finished if its marker has the same settings and a source file of the same name and size (a plain copy has
    another time). InputError for an existing folder of another source or other settings, unless `redo`.
    """
    found = map_in_threads(_find_result, videos)
    differences = [result for result in found if isinstance(result, str)]
    if differences and not redo:
        raise InputError(f"{differences[0]}; --redo extracts it again ({len(differences)} such folder(s) of {len(videos)})")
    return {video.name: None if isinstance(result, str) else result for video, result in zip(videos, found)}


def _find_result(video: SourceVideo) -> ExtractionResult | str | None:
    """Returns the result of a finished folder, None if there is none, or how it differs from what is wanted."""
    found = read_marker(video.folder)
    if found is None:
        return f"{video.folder}: exists, but was not written by this script" if os.path.lexists(video.folder) else None
    wanted = video.marker()
    old, new = ({**side.settings, "video": side.video, "source_bytes": side.source_bytes} for side in (found, wanted))
    values = {name: ["unset" if side.get(name) is None else side[name] for side in (old, new)] for name in sorted(old | new)}
    changes = "; ".join(f"{name} {before}, not {now}" for name, (before, now) in values.items() if before != now)
    if changes:
        what = f"from another file than {video.source}, with" if found.settings == wanted.settings else "with"
        return f"{video.folder}: was extracted {what} {changes}"
    return ExtractionResult(found.frames, found.note)


def extract_videos(videos: list[SourceVideo], results: dict[str, ExtractionResult | None], destination: Path,
                   num_workers: int) -> int:
    """Returns the exit status after extracting the videos without a result, writing the report and printing a summary.

    The report has the columns path, status ("ok", "broken", "to do"), frames and reason, one row per video.
    """
    import pandas

    for folder in {video.folder.parent for video in videos}:
        for leftover in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f".*{REPLACED}")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()  # of an interrupted run
    to_do = [video for video in videos if results[video.name] is None]
    num_done, interrupted = len(videos) - len(to_do), False
    jobs = run_jobs(extract_video, to_do, num_workers)
    try:
        for video, result in show_progress(jobs, len(to_do), "extracting", "videos"):
            crash = isinstance(result, Crash)
            results[video.name] = ExtractionResult(0, f"decoding it ended the process: {result.reason}") if crash else result
    except KeyboardInterrupt:
        interrupted = True
    finally:
        jobs.close()  # ends the processes, in the middle of a video if need be
        for video in to_do:
            shutil.rmtree(video.partial, ignore_errors=True)  # the next run removes what cannot be removed now
    rows = [(name, "to do", None, "") if result is None else (name, "ok" if result.frames else "broken", *result)
            for name, result in results.items()]
    report = pandas.DataFrame(rows, columns=["path", "status", "frames", "reason"]).astype({"frames": "Int64"})
    write_atomically(destination / REPORT, report.to_csv(index=False, lineterminator="\n").encode(
        errors="backslashreplace"))
    ok, broken = report[report["status"] == "ok"], report[report["status"] == "broken"]
    print(f"{destination}: {len(report):,} videos: {len(ok) - num_done:,} extracted, {num_done:,} were there already, "
          f"{len(broken):,} broken; {ok['frames'].sum():,} frames in all")
    for row in broken.sort_values("path").head(NAMED_BROKEN).itertuples():
        print(f"  broken: {row.path}: {row.reason}")
    if len(broken) > NAMED_BROKEN:
        print(f"  and {len(broken) - NAMED_BROKEN:,} more in {destination / REPORT}")
    if noted := (ok["reason"] != "").sum():
        print(f"  {noted:,} extracted with a note in {destination / REPORT}")
    if interrupted:
        print(f"interrupted with {len(report) - len(ok) - len(broken):,} videos to do; resume with the same command",
              file=sys.stderr)
        return INTERRUPTED
    return 1 if len(broken) else 0


def extract_video(video: SourceVideo) -> ExtractionResult:
    """Returns how many frames were written to `video.folder`, or why the video is broken.

    An older folder is replaced. Whatever happens, the folder is either as before or finished, and nothing else is left.
    Raises OSError if the destination cannot be written.
    """
    partial, replaced = video.partial, video.partial.with_suffix(REPLACED)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        marker = video.marker()  # before it is decoded, as it may change meanwhile
        result = _write_frames(video)
        marker = replace(marker, frames=result.frames, note=result.reason)
        (partial / FRAME_MARKER).write_text(json.dumps(asdict(marker), indent=1) + "\n")
        if os.path.lexists(video.folder):
            video.folder.rename(replaced)
        partial.rename(video.folder)
        if os.path.lexists(replaced):
            shutil.rmtree(replaced)
        return result
    except InputError as error:
        return ExtractionResult(0, str(error).removeprefix(f"{video.source}: "))
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # an error in the way here must not hide the first one


def shorten_gaps(frames: Iterable[tuple[float, np.ndarray]], gaps: list[float]) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time in s, frame) with gaps between times shortened to `LONGEST_STILL_S`; appends their lengths to `gaps`."""
    previous, removed = None, 0.0
    for time, frame in frames:
        if previous is not None and time - previous > LONGEST_STILL_S:
            gaps.append(time - previous)
            removed += gaps[-1] - LONGEST_STILL_S
        previous = time
        yield time - removed, frame


def resample(frames: Iterable[tuple[float, np.ndarray]], fps: float) -> Iterator[np.ndarray]:
    """Yields `fps` frames per second from (time in s, frame): at times k / fps (k = 0, 1, ...) after the first frame, the
    frame nearest in time, the earlier of two equally near ones.

    The times end with the video, whose last frame lasts as long as the one before it. A video slower than `fps` yields
    frames repeatedly; a video of one frame yields it once.
    """
    number, interval, time, frame = 0, 0.0, None, None
    for next_time, next_frame in frames:
        if time is None:
            start = next_time
        else:
            interval = next_time - time
            while start + number / fps <= (time + next_time) / 2 + _SAME_TIME_S:
                yield frame
                number += 1
        time, frame = next_time, next_frame
    while time is not None and (number == 0 or start + number / fps < time + interval - _SAME_TIME_S):
        yield frame
        number += 1


def _write_frames(video: SourceVideo) -> ExtractionResult:
    """Returns the number of frames written to the partial folder, and a note. InputError if the video breaks."""
    settings = video.settings
    timed, gaps = iterate_frames(str(video.source)), []
    frames = resample(shorten_gaps(timed, gaps), settings.fps) if settings.fps else (frame for _, frame in timed)
    count, first_size = 0, None
    for count, frame in enumerate(frames, start=1):
        height, width = frame.shape[:2]
        size = settings.frame_size(width, height)
        first_size = first_size or size
        if size != first_size:
            raise InputError(f"its frame size changes: frame {count} is {size[0]}x{size[1]}, "
                             f"the first {first_size[0]}x{first_size[1]}; --size makes them equal")
        _check_writable(size, "its frames")
        if size != (width, height):
            frame = resize_frames(frame[None], size, "bicubic")[0]  # exactly as reading at that size resizes it
        write_frame(video.partial, count - 1, frame, settings.quality)
    assert count, video.source
    if not settings.fps:
        return ExtractionResult(count, shortage(count, promised_frames(str(video.source))))
    return ExtractionResult(count, f"{len(gaps)} gap(s) in its times, the longest of {max(gaps):.0f} s: shortened to "
                            f"{LONGEST_STILL_S} s" if gaps else "")


def _check_writable(size: tuple[int, int], what: str) -> None:
    if max(size) > LARGEST_SIDE_PX:
        raise InputError(f"{what}: {size[0]}x{size[1]} px, a JPEG image can have {LARGEST_SIDE_PX} px per side")
