"""Extract a tree of videos into a tree of frame folders: DST/<same folders>/<video name>/image_00001.jpg ...

    python scripts/extract_frames.py UCF-101 frames/ucf101 --size 200x150
    python scripts/extract_frames.py k400/train frames/k400/train --short_side 150 --workers 32

Can be interrupted at any time and resumed with the same command: a video's folder appears when all its frames are
written, with a hidden .frames.json (number of frames, settings, size of the video file) that marks it as finished. A video
that cannot be decoded is listed in DST/extraction_report.csv (path, status, frames, reason) and tried again by the next run.

All frames are written unless --fps is given: then, for each time k / F of the video (k = 0, 1, ...), the frame nearest in
time. A rate below the video's own skips frames, a higher one repeats frames.

Exit status: 0 all videos are extracted; 1 some are broken; 2 wrong input, or a destination that cannot be written (one
line); 130 interrupted.
"""
# ruff: noqa: E402
from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from dataset.prepare.extraction import PARTIAL, REPLACED, ExtractionResult, FrameSettings, SourceVideo, extract_video
from dataset.prepare.extraction_plan import find_results, list_videos, make_report
from dataset.prepare.worker_pool import Crash, available_cores, run_jobs
from dataset.video_file import require_decoder
from utils.cli import OneLineParser, check_values
from utils.errors import INTERRUPTED, InputError, exit_status_of
from utils.files import hold_lock, show_progress, write_atomically

REPORT = "extraction_report.csv"
LOCK = ".extraction.lock"
WAIT_FOR_LOCK_S = 10
NAMED_BROKEN = 5  # videos on the terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status documented above."""
    parser = OneLineParser(prog="extract_frames.py", description=__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="folder of videos, at any depth")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder for the frame folders")
    parser.add_argument("--short_side", type=int, metavar="PX", help="shorter side of the frames, keeping the aspect ratio")
    parser.add_argument("--size", metavar="WxH", help="size of the frames in px, such as 200x150, ignoring the aspect ratio")
    parser.add_argument("--fps", type=float, metavar="F", help="frames per second (default: every frame)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 100")
    parser.add_argument("--workers", type=int, default=available_cores(), metavar="N", help="number of worker processes")
    parser.add_argument("--redo", action="store_true",
                        help="extract again the videos whose folder has other settings, another source or no marker")
    flags = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clusters send it before they end a job

    def work() -> int:
        check_values(at_least={"--workers": (flags.workers, 1)})
        require_decoder()
        settings = FrameSettings(flags.short_side, flags.size, flags.fps, flags.quality)
        videos = list_videos(flags.source, flags.destination, settings)
        busy = f"{flags.destination}: another extraction is writing into it"
        try:
            flags.destination.mkdir(parents=True, exist_ok=True)
            with hold_lock(flags.destination / LOCK, busy, WAIT_FOR_LOCK_S, f"{busy}; waiting {WAIT_FOR_LOCK_S} s"):
                return extract(videos, find_results(videos, flags.redo), flags.destination, flags.workers)
        except OSError as error:
            raise InputError(f"{error.filename or flags.destination}: cannot write: {error.strerror}") from error

    return exit_status_of(work, parser.prog)


def extract(videos: list[SourceVideo], results: dict[str, ExtractionResult | None], destination: Path, workers: int) -> int:
    """Returns the exit status after extracting the videos without a result, writing the report and printing a summary."""
    to_do = [video for video in videos if results[video.name] is None]
    for folder in sorted({video.folder.parent for video in videos}):
        for leftover in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f".*{REPLACED}")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()  # of an interrupted run
    interrupted = False
    jobs = run_jobs(extract_video, to_do, workers)
    try:
        for video, result in show_progress(jobs, len(to_do), "extracting", "videos"):
            if isinstance(result, Crash):
                result = ExtractionResult(0, f"decoding it ended the process: {result.reason}")
            results[video.name] = result
    except KeyboardInterrupt:
        interrupted = True
    finally:
        jobs.close()  # ends the processes, in the middle of a video if need be
        for video in to_do:
            shutil.rmtree(video.partial, ignore_errors=True)  # the next run removes what cannot be removed now
    report = make_report(results)
    write_atomically(destination / REPORT, report.to_csv(index=False, lineterminator="\n"))
    ok, broken = report[report["status"] == "ok"], report[report["status"] == "broken"]
    num_done = len(videos) - len(to_do)
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


if __name__ == "__main__":
    sys.exit(main())
