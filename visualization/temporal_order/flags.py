"""Flags of visualization/main_temporal.py, and what is refused among them."""
from __future__ import annotations

import argparse
import os
from typing import Any

import torch

from eval.features.extract import ClipSettings
from models.levels import LEVELS
from utils.errors import InputError
from utils.cli import OneLineParser, find_not_positive, find_too_small
from utils.launch import visible_gpus

EVAL_CARD = "result_eval.json"  # that of --mode eval; the training's own card stays
MODES = ("train", "eval", "visualize")
# What flags that were left out are in a new training; elsewhere they are what the head was trained with.
CLIP_DEFAULTS = {"clip_frames": 16, "stride": 1, "img_dim": 224, "clips": 1, "level": "high"}
# What else the weights of a trained head depend on; the number of epochs may grow.
TRAINING_FLAGS = {"augment": "--augment", "batch_pairs": "--train_batch", "lr": "--lr", "lr_decay_epoch": "--lr_decay",
                  "weight_decay": "--wd", "seed": "--seed"}
CLIP_FLAGS = {"clip_frames": "--seq", "stride": "--ds", "img_dim": "--img_dim", "clips": "--clips", "level": "--level"}


def order_parser(description: str | None = None) -> OneLineParser:
    """The parser of `python visualization/main_temporal.py`."""
    parser = OneLineParser(prog="main_temporal.py", description=description)
    parser.add_argument("--mode", choices=MODES, default="train",
                        help="train the head, then test it; eval: test it; visualize: write its maps")

    weights = parser.add_argument_group("weights")
    weights.add_argument("--weights", required=True, metavar="CHECKPOINT|random",
                         help="backbone, which stays as it is")
    weights.add_argument("--net", help="architecture; needed for random weights, else told by the checkpoint")
    weights.add_argument("--head", metavar="CHECKPOINT",
                         help="eval, visualize: trained head (default: the newest in --out)")
    weights.add_argument("--seed", type=int, default=0, help="seed of random weights, order and augmentation")

    data = parser.add_argument_group("clips (defaults in eval and visualize: as the head was trained)")
    data.add_argument("--train_csv", metavar="CSV",
                      help="train: videos to learn from: frame_dir,number_of_frames; no label needed; eval: to name "
                           "that list where it has moved")
    data.add_argument("--test_csv", metavar="CSV", help="held-out videos: to test on, or to show")
    for flag, name, meaning in (
        ("--seq", "clip_frames", "frames of a clip"), ("--ds", "stride", "take every ds-th frame"),
        ("--img_dim", "img_dim", "side of a clip in px"),
        ("--clips", "clips", "evenly spaced clips of each video; one is taken from its middle"),
    ):
        data.add_argument(flag, dest=name, type=int, metavar="N",
                          help=f"{meaning} (default: {CLIP_DEFAULTS[name]})")
    data.add_argument("--level", choices=LEVELS,
                      help=f"map under the head (default: {CLIP_DEFAULTS['level']})")
    data.add_argument("--augment", action="store_true",
                      help="train: a new random clip, crop, flip and color of each video each epoch; the "
                           "backbone is computed each time")

    optimization = parser.add_argument_group("training of the head (mode train alone)")
    optimization.add_argument("--epoch", dest="epochs", type=int, default=50, metavar="N",
                              help="epochs in all")
    optimization.add_argument("--train_batch", dest="batch_pairs", type=int, default=256, metavar="B",
                              help="clips in a step, each with its reversal: 2 B rows")
    optimization.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    optimization.add_argument("--lr_decay", dest="lr_decay_epoch", type=int, default=30, metavar="EPOCH",
                              help="first epoch (from 0) at a tenth of --lr")
    optimization.add_argument("--wd", dest="weight_decay", type=float, default=1e-3, help="weight decay (L2)")

    work = parser.add_argument_group("work")
    work.add_argument("--gpu", metavar="N|none",
                      help="GPU to use; none: the CPU (default: the first there is)")
    work.add_argument("--batch", type=int, default=32, metavar="M",
                      help="clips in one forward of the backbone")
    work.add_argument("--workers", dest="num_workers", type=int, default=4, help="reading processes")
    work.add_argument("--feature_dir", metavar="DIR",
                      help="features are kept here, and used again for the same weights, csv and clips; frames "
                           "that have changed under the same csv are not noticed (default: OUT/features)")

    output = parser.add_argument_group("output")
    output.add_argument("--out", default="runs/order", metavar="DIR", help="run directory of the head")
    output.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
                        help="train: go on from the newest head in --out, or from the one named")
    output.add_argument("--num_videos", type=int, default=8, metavar="N",
                        help="visualize: the first N of --test_csv that are long enough; they take the "
                             "place of all films in OUT/cam")
    output.add_argument("--scale", choices=("clip", "frame"), default="clip",
                        help="visualize: one color scale for a clip and its reversal; frame: one for each "
                             "frame, which hides how strong the evidence is over time")
    output.add_argument("--fps", type=int, default=4, metavar="N", help="visualize: frames a second")
    output.add_argument("--pos", default="natural", metavar="NAME",
                        help="visualize: folder of the natural order's pictures, in OUT/cam")
    output.add_argument("--neg", default="reversed", metavar="NAME",
                        help="visualize: folder of the reversed order's pictures")
    return parser


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for a value that cannot work, or for what the mode lacks."""
    problem = find_too_small({
        "--seed": (flags.seed, 0), "--seq": (flags.clip_frames, 8), "--ds": (flags.stride, 1),
        "--img_dim": (flags.img_dim, 32), "--clips": (flags.clips, 1), "--epoch": (flags.epochs, 1),
        "--train_batch": (flags.batch_pairs, 1), "--lr_decay": (flags.lr_decay_epoch, 0),
        "--wd": (flags.weight_decay, 0), "--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0),
        "--num_videos": (flags.num_videos, 1), "--fps": (flags.fps, 1),
    }) or find_not_positive({"--lr": flags.lr})
    if problem:
        raise InputError(problem)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"WORLD_SIZE {os.environ['WORLD_SIZE']}: one process does this work; start it without "
                         "torchrun")
    for name in ("train_csv", "test_csv") if flags.mode == "train" else ("test_csv",):
        if getattr(flags, name) is None:
            raise InputError(f"--{name}: needed with --mode {flags.mode}")
    if flags.mode == "train" and flags.head:
        raise InputError(f"--head {flags.head}: for --mode eval and visualize; training goes on by --resume")
    if flags.mode != "train" and flags.resume:
        raise InputError(f"--resume {flags.resume}: for --mode train; --head names a trained head")
    unused = [flag for flag, value, modes in (
        ("--augment", flags.augment, ("train",)), ("--clips", flags.clips, ("train", "eval")),
        ("--train_csv", flags.train_csv, ("train", "eval"))) if value and flags.mode not in modes]
    if unused:
        raise InputError(f"{unused[0]}: without effect in --mode {flags.mode}; leave it out")
    for flag, name in (("--pos", flags.pos), ("--neg", flags.neg)):
        if name in ("", os.curdir, os.pardir) or os.path.basename(name) != name:
            raise InputError(f"{flag} {name}: must be the name of a folder in OUT/cam, without {os.sep}")
    if flags.pos == flags.neg:
        raise InputError(f"--neg {flags.neg}: must be another folder than --pos")


def choose_device(gpu: str | None) -> torch.device:
    """The device that --gpu names; InputError where it is no single GPU of this machine."""
    if gpu not in (None, "none") and not gpu.isdecimal():
        raise InputError(f"--gpu {gpu}: must be none or the number of one GPU: one process does this work")
    gpus = visible_gpus(gpu)
    return torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")


def complete_flags(flags: argparse.Namespace, values: dict[str, Any]) -> list[str]:
    """Give each flag among `values` that was left out its value there; a line on each that differs."""
    notes = []
    for name, value in values.items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)
        elif getattr(flags, name) != value:
            notes.append(f"the head was trained with {name} {value}, now it is {getattr(flags, name)}")
    return notes


def clip_settings(flags: argparse.Namespace) -> ClipSettings:
    """Which pixels of a video are looked at, from completed flags."""
    return ClipSettings(flags.clips, flags.clip_frames, flags.stride, flags.img_dim, crops=1)
