"""Settings of visualization/main_temporal.py: defaults, command line and checks."""
from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from eval.cli import require_at_least
from eval.features.extract import ClipSettings
from models.levels import LEVELS
from utils.cli import OneLineParser, find_not_positive
from utils.errors import AgreedError, InputError
from utils.launch import visible_gpus

# Clip settings that were left out: those of a trained head, in a new training these.
CLIP_DEFAULTS = {"clip_frames": 16, "stride": 1, "img_dim": 224, "clips": 1, "level": "high"}
CLIP_FLAGS = {"clip_frames": "--seq", "stride": "--ds", "img_dim": "--img_dim", "clips": "--clips", "level": "--level"}
# Besides, the weights of a trained head depend on these; the number of epochs may grow.
TRAINING_FLAGS = {"augment": "--augment", "batch_pairs": "--train_batch", "lr": "--lr", "lr_decay_epoch": "--lr_decay",
                  "weight_decay": "--wd", "seed": "--seed"}


@dataclass(frozen=True)
class OrderSettings:
    """What a temporal-order head is trained on, tested on and shown for; `order_parser` describes each field."""

    weights: str
    net: str | None = None
    head: str | None = None
    seed: int = 0
    train_csv: str | None = None
    test_csv: str | None = None
    clip_frames: int | None = None
    stride: int | None = None
    img_dim: int | None = None
    clips: int | None = None
    level: str | None = None
    augment: bool = False
    epochs: int = 50
    batch_pairs: int = 256
    lr: float = 1e-3
    lr_decay_epoch: int = 30
    weight_decay: float = 1e-3
    batch: int = 32
    num_workers: int = 4
    feature_dir: str | None = None
    out: str = "runs/order"
    resume: str | None = None
    num_videos: int = 8
    scale: str = "clip"
    fps: int = 4
    pos: str = "natural"
    neg: str = "reversed"

    def completed(self, values: dict[str, Any]) -> OrderSettings:
        """Returns these settings with each of `values` where a field is None."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    @property
    def clip_settings(self) -> ClipSettings:
        """Which clips of a video are read, by completed settings."""
        return ClipSettings(self.clips, self.clip_frames, self.stride, self.img_dim, crops=1)


def order_parser(description: str | None = None) -> OneLineParser:
    """Returns the parser of `python visualization/main_temporal.py`: --mode, --gpu and a flag for each setting."""
    parser = OneLineParser(prog="main_temporal.py", description=description)
    parser.add_argument("--mode", choices=("train", "eval", "visualize"), default="train",
                        help="train the head, then test it; eval: test it; visualize: write its maps")
    add = parser.add_argument_group("weights").add_argument
    add("--weights", required=True, metavar="CHECKPOINT|random", help="backbone; it stays frozen")
    add("--net", help="architecture; needed for random weights, else read from the checkpoint")
    add("--head", metavar="CHECKPOINT", help="eval, visualize: trained head (default: the newest in --out)")
    add("--seed", type=int, help="seed of random weights, order and augmentation")
    add = parser.add_argument_group("clips (defaults in eval and visualize: as the head was trained)").add_argument
    add("--train_csv", metavar="CSV", help="train: training videos: frame_dir,number_of_frames; labels are not needed; "
                                           "eval: the same list where it has moved")
    add("--test_csv", metavar="CSV", help="held-out videos to test on, or to show")
    for name, meaning in (("clip_frames", "frames of a clip"), ("stride", "take every ds-th frame"),
                          ("img_dim", "side of a clip in px"),
                          ("clips", "evenly spaced clips of each video; one is taken from its middle")):
        add(CLIP_FLAGS[name], dest=name, type=int, metavar="N", help=f"{meaning} (default: {CLIP_DEFAULTS[name]})")
    add("--level", choices=LEVELS, help=f"feature map under the head (default: {CLIP_DEFAULTS['level']})")
    add("--augment", action="store_true", help="train: a random clip, crop, flip and color of each video in each epoch; "
                                               "the backbone is run every time")
    add = parser.add_argument_group("training of the head (--mode train)").add_argument
    add("--epoch", dest="epochs", type=int, metavar="N", help="number of epochs in all")
    add("--train_batch", dest="batch_pairs", type=int, metavar="B", help="clips per step, each with its reversal: 2 B rows")
    add("--lr", type=float, help="learning rate of Adam")
    add("--lr_decay", dest="lr_decay_epoch", type=int, metavar="EPOCH", help="first epoch (from 0) at a tenth of --lr")
    add("--wd", dest="weight_decay", type=float, help="weight decay (L2)")
    add = parser.add_argument_group("work").add_argument
    add("--gpu", metavar="N|none", help="GPU to use; none: the CPU (default: the first GPU, if there is one)")
    add("--batch", type=int, metavar="M", help="clips in one forward of the backbone")
    add("--workers", dest="num_workers", type=int, help="DataLoader workers")
    add("--feature_dir", metavar="DIR",
        help="features are stored here and used again for the same weights, csv and clips; frames that have changed "
             "under the same csv are not noticed (default: OUT/features)")
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="DIR", help="run directory of the head")
    add("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
        help="train: resume from the newest head in --out, or from the one given")
    add("--num_videos", type=int, metavar="N", help="visualize: the first N of --test_csv that are long enough; they "
                                                    "replace all videos in OUT/cam")
    add("--scale", choices=("clip", "frame"),
        help="visualize: one color scale for a clip and its reversal; frame: one for each frame, which hides how strong "
             "the evidence is over time")
    add("--fps", type=int, metavar="N", help="visualize: frames per second")
    add("--pos", metavar="NAME", help="visualize: folder of the natural order's images, in OUT/cam")
    add("--neg", metavar="NAME", help="visualize: folder of the reversed order's images, in OUT/cam")
    parser.set_defaults(**{name: value for name, value in asdict(OrderSettings("")).items() if name != "weights"})
    return parser


def check_order_settings(settings: OrderSettings, mode: str) -> None:
    """Raises InputError for a value that cannot work, or that `mode` lacks or does not use."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AgreedError(f"WORLD_SIZE {os.environ['WORLD_SIZE']}: this runs in a single process; start it without torchrun")
    require_at_least({
        "--seed": (settings.seed, 0), "--seq": (settings.clip_frames, 8), "--ds": (settings.stride, 1),
        "--img_dim": (settings.img_dim, 32), "--clips": (settings.clips, 1), "--epoch": (settings.epochs, 1),
        "--train_batch": (settings.batch_pairs, 1), "--lr_decay": (settings.lr_decay_epoch, 0),
        "--wd": (settings.weight_decay, 0), "--batch": (settings.batch, 1), "--workers": (settings.num_workers, 0),
        "--num_videos": (settings.num_videos, 1), "--fps": (settings.fps, 1)})
    problem = find_not_positive({"--lr": settings.lr})
    if problem:
        raise InputError(problem)
    for name in ("train_csv", "test_csv") if mode == "train" else ("test_csv",):
        if getattr(settings, name) is None:
            raise InputError(f"--{name}: needed with --mode {mode}")
    for name, modes, instead in (
        ("head", ("eval", "visualize"), "--resume resumes training"), ("resume", ("train",), "--head takes a trained head"),
        ("augment", ("train",), "leave it out"), ("clips", ("train", "eval"), "leave it out"),
        ("train_csv", ("train", "eval"), "leave it out"),
    ):
        if getattr(settings, name) and mode not in modes:
            raise InputError(f"--{name}: without effect in --mode {mode}; {instead}")
    for flag, name in (("--pos", settings.pos), ("--neg", settings.neg)):
        if name in ("", os.curdir, os.pardir) or os.path.basename(name) != name:
            raise InputError(f"{flag} {name}: must be the name of a folder in OUT/cam, without {os.sep}")
    if settings.pos == settings.neg:
        raise InputError(f"--neg {settings.neg}: must be another folder than --pos")


def choose_device(gpu: str | None) -> torch.device:
    """Returns the device of --gpu; InputError unless it is none or a single GPU of this machine."""
    if gpu not in (None, "none") and not gpu.isdecimal():
        raise InputError(f"--gpu {gpu}: must be none or the number of one GPU: this runs in a single process")
    gpus = visible_gpus(gpu)
    return torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")
