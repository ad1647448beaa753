"""Flags that every evaluation from features has."""
from __future__ import annotations

import argparse

import torch

from eval.features import WINDOWS, ClipSettings
from utils.errors import InputError


def add_feature_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of weights, clips and extraction, which every evaluation from features has."""
    weights = parser.add_argument_group("weights")
    weights.add_argument("--weights", required=True, metavar="CHECKPOINT|random", help="what to evaluate")
    weights.add_argument("--net", help="architecture; needed for random weights, else told by the checkpoint")
    weights.add_argument("--seed", type=int, default=0, help="seed of random weights")

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

    work = parser.add_argument_group("extraction")
    work.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    work.add_argument("--batch", type=int, default=32, metavar="M",
                      help="clips in one forward; decides speed, and no more than the last bits of a feature")
    work.add_argument("--workers", dest="num_workers", type=int, default=4,
                      help="reading processes; decides speed alone")
    work.add_argument("--feature_dir", metavar="DIR",
                      help="keep features here, and use those kept for the same weights, csv and clips")
    work.add_argument("--skip_bad", action="store_true",
                      help="leave out and report videos that cannot be read (default: stop at the first)")


def read_feature_flags(flags: argparse.Namespace) -> tuple[ClipSettings, torch.device]:
    """The clip settings and the device that `flags` name; InputError for a value that cannot work."""
    least = {"--seq": (flags.clip_frames, 8), "--ds": (flags.stride, 1), "--img_dim": (flags.img_dim, 32),
             "--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0), "--seed": (flags.seed, 0)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise InputError(f"{name} {value}: must be at least {bound}")
    if flags.clips != WINDOWS and not (flags.clips.isdecimal() and int(flags.clips) >= 1):
        raise InputError(f"--clips {flags.clips}: must be a number of clips from 1, or {WINDOWS}")
    clips = WINDOWS if flags.clips == WINDOWS else int(flags.clips)
    name = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: choose cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: choose cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s)")
    return ClipSettings(clips, flags.clip_frames, flags.stride, flags.img_dim, flags.crops), device
