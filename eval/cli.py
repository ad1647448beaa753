"""Flags that the evaluations share, and how each of them is started."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from dataset.sampling import CLIP_ORDERS, NATURAL
from eval.features.extract import CONCAT, LEVEL_CHOICES, WINDOWS, ClipSettings
from eval.splits import find_splits
from utils.cli import OneLineParser, check_launch_flags, check_values
from utils.distributed import DistContext
from utils.errors import InputError, exit_status_of


def add_weights_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    add = parser.add_argument_group("weights").add_argument
    add("--weights", required=required, metavar="CHECKPOINT|random", help="what to evaluate")
    add("--net", help="architecture; needed for random weights, else read from the checkpoint")
    add("--input", dest="input_frames", choices=("rgb", "residual"),
        help="frames that random weights see (default: rgb); a checkpoint says it itself")
    add("--seed", type=int, default=0, help="seed of random weights, and of every other draw")


def add_feature_flags(parser: argparse.ArgumentParser, extracted: bool = True) -> None:
    """Adds the flags of weights, clips and reading; `extracted`: also those of features that are extracted once."""
    add_weights_flags(parser, required=extracted)
    add = parser.add_argument_group("clips").add_argument
    add("--clips", default="10", metavar="N|windows",
        help="N evenly spaced clips, or half-overlapping windows over the whole video")
    add("--seq", dest="clip_frames", type=int, default=16, metavar="T", help="frames of a clip")
    add("--ds", dest="stride", type=int, default=1,
        help="take every ds-th frame; 1 as in CoCLR (pretraining draws from 1 to --rate)")
    add("--img_dim", type=int, default=112, metavar="S", help="side of a crop in px")
    add("--crops", type=int, choices=(1, 5, 10), default=1,
        help="1: centre; 5: centre and corners; 10: these and their mirror images")
    add("--clip_order", choices=CLIP_ORDERS, default=NATURAL,
        help="frames of test clips (not of training clips): in natural order; reversed; shuffled, by a permutation of each "
             "clip drawn from --seed; or frozen, the middle one repeated")
    add = parser.add_argument_group("reading").add_argument
    add("--batch", type=int, default=32, metavar="M",
        help="clips in one forward without training; changes speed, and no more than the last bits of the results")
    add("--workers", dest="num_workers", type=int, default=4, help="DataLoader workers of each process; changes speed alone")
    add("--skip_bad", action="store_true",
        help="leave out and report videos that cannot be read (default: stop at the first)")
    if extracted:
        add("--amp", choices=("off", "bf16"), default="off",
            help="bf16: the backbone in bfloat16, which is faster and changes features by 0.2 to 1 %%; their means, and all "
                 "that is computed from them, in float32")
        add("--feature_dir", metavar="DIR",
            help="keep features here, and use those kept for the same weights, csv, clips and precision; frames that have "
                 "changed under the same csv are not noticed")


def add_levels_flag(group: argparse._ArgumentGroup, default: str) -> None:
    group.add_argument("--levels", default=default, metavar="LEVEL,...",
                       help=f"feature levels to evaluate, of {', '.join(LEVEL_CHOICES)}; {CONCAT} is the other three side "
                            "by side")


def parse_levels(text: str) -> list[str]:
    """Returns the levels of --levels, in order."""
    levels = text.split(",")
    if any(level not in LEVEL_CHOICES for level in levels) or len(set(levels)) < len(levels):
        raise InputError(f"--levels {text}: must be distinct names among {', '.join(LEVEL_CHOICES)}")
    return levels


def read_clip_settings(flags: argparse.Namespace) -> ClipSettings:
    """Returns the clip settings of `flags`; InputError for a value that cannot work."""
    check_values({"--seq": (flags.clip_frames, 8), "--ds": (flags.stride, 1), "--img_dim": (flags.img_dim, 32)})
    if flags.clips != WINDOWS and not (flags.clips.isdecimal() and int(flags.clips) >= 1):
        raise InputError(f"--clips {flags.clips}: must be a number of clips from 1, or {WINDOWS}")
    clips = WINDOWS if flags.clips == WINDOWS else int(flags.clips)
    return ClipSettings(clips, flags.clip_frames, flags.stride, flags.img_dim, flags.crops, flags.clip_order,
                        flags.seed if flags.clip_order == "shuffled" else 0)


def check_feature_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for a value, among csv files, levels, clips and reading, that cannot work."""
    if "splits" in flags:
        find_splits(flags)
    if "levels" in flags:
        parse_levels(flags.levels)
    read_clip_settings(flags)
    check_values({"--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0), "--seed": (flags.seed, 0)})


def run_command(parser: OneLineParser, check: Callable[[argparse.Namespace], None],
                worker: Callable[[DistContext, argparse.Namespace], int | None], arguments: Sequence[str] | None) -> int:
    """Returns the exit status (see `utils.errors`) of `worker(context, flags)`, a function of a module, in all processes.

    `check(flags)` raises InputError for flags that cannot work, before any process starts.
    """
    flags = parser.parse_args(arguments)

    def work() -> int:
        from utils.launch import launch

        check(flags)
        check_launch_flags(flags)
        return launch(worker, flags, parser.prog)

    return exit_status_of(work, parser.prog)
