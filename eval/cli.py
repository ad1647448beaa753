"""Flags that the evaluations share, and how each of them is started."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from eval.splits import find_splits
from eval.features.clip_means import WINDOWS, ClipSettings
from utils.distributed import DistContext
from utils.errors import InputError, report
from utils.cli import OneLineParser, find_launch_problem, find_too_small
from utils.launch import launch


def add_weight_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Flags of what is evaluated, and of the seed."""
    weights = parser.add_argument_group("weights")
    weights.add_argument("--weights", required=required, metavar="CHECKPOINT|random", help="what to evaluate")
    weights.add_argument("--net", help="architecture; needed for random weights, else told by the checkpoint")
    weights.add_argument("--seed", type=int, default=0, help="seed of random weights, and of every other draw")


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the clips that test videos, and all videos of which features are taken, are seen by."""
    clips = parser.add_argument_group("clips")
    clips.add_argument("--clips", default="10", metavar="N|windows",
                       help="N evenly spaced clips, or half-overlapping windows over the whole video")
    clips.add_argument("--seq", dest="clip_frames", type=int, default=16, metavar="T",
                       help="frames of a clip")
    clips.add_argument("--ds", dest="stride", type=int, default=1,
                       help="take every ds-th frame; 1 as in CoCLR (pretraining draws from 1 to --rate)")
    clips.add_argument("--img_dim", type=int, default=112, metavar="S", help="side of a crop in px")
    clips.add_argument("--crops", type=int, choices=(1, 5, 10), default=1,
                       help="1: centre; 5: centre and corners; 10: these and their mirror images")


def add_feature_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that works on extracted features: weights, clips, extraction."""
    add_weight_flags(parser)
    add_clip_flags(parser)
    add_extraction_flags(parser)


def add_extraction_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of how features are computed and kept."""
    work = add_reading_flags(parser)
    work.add_argument("--amp", choices=("off", "bf16"), default="off",
                      help="bf16: the backbone in bfloat16, which is faster and changes features by 0.2 to 1 %%; their "
                           "means, and all that is done with them, in float32")
    work.add_argument("--feature_dir", metavar="DIR",
                      help="keep features here, and use those kept for the same weights, csv, clips and precision; "
                           "frames that have changed under the same csv are not noticed")


def add_reading_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of how videos are read and seen by the network; returns their group."""
    work = parser.add_argument_group("reading")
    work.add_argument("--batch", type=int, default=32, metavar="M",
                      help="clips in one forward without training; decides speed, and no more than the last bits of "
                           "what it gives")
    work.add_argument("--workers", dest="num_workers", type=int, default=4,
                      help="reading processes of each process; decides speed alone")
    work.add_argument("--skip_bad", action="store_true",
                      help="leave out and report videos that cannot be read (default: stop at the first)")
    return work


def read_clip_settings(flags: argparse.Namespace) -> ClipSettings:
    """The clip settings that `flags` name; InputError for a value that cannot work."""
    require_at_least({"--seq": (flags.clip_frames, 8), "--ds": (flags.stride, 1), "--img_dim": (flags.img_dim, 32)})
    if flags.clips != WINDOWS and not (flags.clips.isdecimal() and int(flags.clips) >= 1):
        raise InputError(f"--clips {flags.clips}: must be a number of clips from 1, or {WINDOWS}")
    clips = WINDOWS if flags.clips == WINDOWS else int(flags.clips)
    return ClipSettings(clips, flags.clip_frames, flags.stride, flags.img_dim, flags.crops)


def check_feature_flags(flags: argparse.Namespace) -> None:
    """InputError for a value, among csv files, weights, clips and extraction, that cannot work."""
    find_splits(flags)
    read_clip_settings(flags)
    require_at_least({"--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0), "--seed": (flags.seed, 0)})


def require_at_least(values: dict[str, tuple[float | None, float]]) -> None:
    """InputError on the first flag -> (value, least value) that is smaller or not finite; a value of None may be."""
    problem = find_too_small(values)
    if problem:
        raise InputError(problem)


def run_command(
    parser: OneLineParser, check: Callable[[argparse.Namespace], None],
    worker: Callable[[DistContext, argparse.Namespace], None], arguments: Sequence[str] | None,
) -> int:
    """Exit status of an evaluation: 0, or 2 after a user's mistake, told in one line.

    `check(flags)` raises InputError for flags that cannot work, before any process starts; then
    `worker(process, flags)`, a function of a module, runs in each.
    """
    flags = parser.parse_args(arguments)
    try:
        check(flags)
        problem = find_launch_problem(flags)
        if problem:
            raise InputError(problem)
    except InputError as error:
        return report(error, parser.prog)
    return launch(worker, flags, parser.prog)
