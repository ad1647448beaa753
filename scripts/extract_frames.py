"""Extract a tree of videos into a tree of frame folders: DST/<same folders>/<video name>/image_00001.jpg ...

    python scripts/extract_frames.py UCF-101 frames/ucf101 --size 200x150
    python scripts/extract_frames.py k400/train frames/k400/train --short_side 150 --workers 32

Can be interrupted at any time and resumed with the same command: a video's folder appears when all its frames are
written, with a hidden .frames.json (number of frames, settings, size of the video file) that marks it as finished. A video
that cannot be decoded is listed in DST/extraction_report.csv (path, status, frames, reason) and tried again by the next run.

--fps F takes, for each time k / F of the video (k = 0, 1, ...), the frame nearest in time: a rate below the video's own
skips frames, a higher one repeats frames.

Exit status: 0 all videos are extracted; 1 some are broken; 2 wrong input, or a destination that cannot be written (one
line); 130 interrupted.
"""
from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from dataset.prepare.extraction import FrameSettings, extract_tree
from dataset.prepare.worker_pool import available_cores
from utils.cli import OneLineParser, check_values
from utils.errors import exit_status_of


def main(arguments: Sequence[str] | None = None) -> int:
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
        settings = FrameSettings(flags.short_side, flags.size, flags.fps, flags.quality)
        return extract_tree(flags.source, flags.destination, settings, flags.redo, flags.workers)

    return exit_status_of(work, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
