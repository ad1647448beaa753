"""Turn a tree of videos into a tree of frame folders: DST/<same folders>/<video name>/image_00001.jpg ...

    python scripts/extract_frames.py UCF-101 frames/ucf101 --size 200x150
    python scripts/extract_frames.py k400/train frames/k400/train --short_side 150 --workers 32

Can be interrupted at any moment and started again with the same command: a video's folder appears when all its frames
are written, with a hidden .frames.json (frame count, settings, size of the video file) by which the next start knows that
it is done. A video that does not decode is told in DST/extraction_report.csv (path, status, frames, reason)
and tried again at the next start.

Every decoded frame is written unless --fps asks for another rate: then, for the moments k / F of the video (k = 0, 1,
...), the frame nearest in time; rates below the video's own leave frames out, higher ones repeat frames.

Exit status: 0 all videos are extracted; 1 some are broken; 2 a user's mistake, told in one line, or a destination that
cannot be written; 130 interrupted.
"""
# ruff: noqa: E402
from __future__ import annotations

import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

from dataset.prepare.extraction import Outcome, Settings, extract_video
from dataset.prepare.extraction_plan import (
    REPORT, Plan, list_videos, plan_extraction, remove_leftovers, sole_writer, write_report,
)
from dataset.prepare.worker_pool import Crash, available_cores, run_jobs
from dataset.video_file import require_decoder
from utils.errors import INTERRUPTED, InputError, report
from utils.files import show_progress
from utils.cli import OneLineParser, find_too_small

NAMED_BROKEN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status, as the module's docstring has it."""
    parser = OneLineParser(prog="extract_frames.py", description=__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="folder with videos, at any depth")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder for the frame folders")
    parser.add_argument("--short_side", type=int, metavar="PX", help="shorter side of the frames, aspect ratio kept")
    parser.add_argument("--size", metavar="WxH", help="size of the frames in px, such as 200x150; may distort")
    parser.add_argument("--fps", type=float, metavar="F", help="frames a second; all frames if not given")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 100")
    parser.add_argument("--workers", type=int, default=available_cores(), metavar="N", help="processes")
    parser.add_argument("--redo", action="store_true",
                        help="extract again the videos whose folder is of other settings, another file or program")
    flags = parser.parse_args(arguments)
    problem = find_too_small({"--workers": (flags.workers, 1)})
    if problem:
        parser.error(problem)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's notice ends it as Ctrl-C does
    try:
        require_decoder()
        settings = Settings(flags.short_side, flags.size, flags.fps, flags.quality)
        videos = list_videos(flags.source, flags.destination, settings)
        with sole_writer(flags.destination) as lock:
            plan = plan_extraction(videos, flags.redo)  # now that nobody else changes what is there
            return extract(plan, flags.destination, flags.workers, lock)
    except InputError as error:
        return report(error, parser.prog)
    except KeyboardInterrupt:  # before the first video or after the last
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def extract(plan: Plan, destination: Path, workers: int, lock: Connection) -> int:
    """Exit status, after the videos to do are extracted and the report is written."""
    remove_leftovers(plan.leftovers)
    outcomes: dict[str, Outcome] = {}
    jobs = run_jobs(extract_video, plan.to_do, workers, lock)
    interrupted = False
    try:
        for video, outcome in show_progress(jobs, len(plan.to_do), "extracting", "videos"):
            if isinstance(outcome, Crash):
                outcome = Outcome(0, f"decoding it ended the process: {outcome.reason}")
            outcomes[video.name] = outcome
    except KeyboardInterrupt:
        interrupted = True
    finally:
        jobs.close()  # ends the processes, in the middle of a video if need be
        for video in plan.to_do:
            shutil.rmtree(video.partial, ignore_errors=True)  # what cannot go now, the next start removes, or tells
    write_report(destination, plan, outcomes)
    return tell(plan, outcomes, destination, interrupted)


def tell(plan: Plan, outcomes: dict[str, Outcome], destination: Path, interrupted: bool) -> int:
    """Exit status, after the last lines."""
    broken = {name: outcome for name, outcome in outcomes.items() if not outcome.frames}
    extracted = len(outcomes) - len(broken)
    finished = [outcome for outcome in (*plan.done.values(), *outcomes.values()) if outcome.frames]
    frames = sum(outcome.frames for outcome in finished)
    print(f"{destination}: {len(plan.videos):,} videos: {extracted:,} extracted, {len(plan.done):,} were there "
          f"already, {len(broken):,} broken; {frames:,} frames in all")
    for name in sorted(broken)[:NAMED_BROKEN]:
        print(f"  broken: {name}: {broken[name].reason}")
    if len(broken) > NAMED_BROKEN:
        print(f"  and {len(broken) - NAMED_BROKEN:,} more in {destination / REPORT}")
    noted = sum(1 for outcome in finished if outcome.reason)
    if noted:
        print(f"  {noted:,} extracted with a note in {destination / REPORT}")
    if interrupted:
        left = len(plan.to_do) - len(outcomes)
        print(f"interrupted with {left:,} videos to do; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
